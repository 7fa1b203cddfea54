"""Stands in for an API server or an engine core: registers with the real file, then does what the test wants.

    stand_in.py SOCKET ROLE RANK INDEX BEHAVIOUR

A behaviour is one or more of the words below, joined by commas, in order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from enginehouse_engine.registration import Registration, register

FOREVER_SECONDS = 600


def main() -> int:
    socket_path, role, rank_text, index, behaviour = sys.argv[1:]
    words = behaviour.split(",")
    if words[0] == "no-register":
        time.sleep(FOREVER_SECONDS)
    rank = None if rank_text == "None" else int(rank_text)
    registration = register(socket_path, role=role, rank=rank, index=int(index), incarnation=1, deadline_seconds=20)
    for word in words:
        code = _act(registration, word, rank=rank, index=int(index))
        if code is not None:
            return code
    return _until_stop(registration)


def _act(registration: Registration, word: str, *, rank: int | None, index: int) -> int | None:
    name, _, value = word.partition("=")
    match name:
        case "stage":
            registration.stage(value)
        case "bound":
            registration.send("bound", endpoint=f"ipc://front-{index}")
        case "ready":
            fits = [
                {"rank": int(r), "incarnation": 1, "maxContextLength": 128, "kvBlocks": 8, "blockSize": 16}
                for r in value.split("+")
            ]
            registration.send("ready", ranks=fits, maxContextLength=128)
        case "addresses":
            message = registration.receive(None)
            print("stand-in got", message, file=sys.stderr, flush=True)
        case "failed":
            registration.failed(value, "the reason")
        case "exit":
            return int(value)
        case "raise":
            raise RuntimeError("on purpose")
        case "kill":
            os.kill(os.getpid(), int(value))
        case "orphan":
            # A grandchild in a session of its own whose parent goes away at once.
            code = f"import subprocess; subprocess.Popen(['sleep', '{value}'], start_new_session=True)"
            subprocess.run([sys.executable, "-c", code], check=True)
        case "fork":
            if os.fork() == 0:
                time.sleep(FOREVER_SECONDS)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(FOREVER_SECONDS)
        case "say":
            print(f"stand-in says {value}", file=sys.stderr, flush=True)
        case _:
            raise AssertionError(f"no such behaviour: {word}")
    return None


def _until_stop(registration: Registration) -> int:
    while True:
        message = registration.receive(None)
        assert message is not None
        print(f"stand-in pid {os.getpid()} got {message['type']}", file=sys.stderr, flush=True)
        if message["type"] == "drain":
            registration.send("drained")
        if message["type"] == "stop":
            registration.bye()
            return 0


if __name__ == "__main__":
    sys.exit(main())
