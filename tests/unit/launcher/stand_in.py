"""Stands in for an API server or an engine core: registers with the real file, then does what the test wants.

    stand_in.py SOCKET ROLE RANK INDEX BEHAVIOUR

A behaviour is one or more of the words below, joined by commas, in order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from enginehouse_engine.registration import Registration, register

FOREVER_SECONDS = 600


def main() -> int:
    socket_path, role, rank_text, index, behaviour = sys.argv[1:]
    words = behaviour.split(",")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    while words and words[0] in ("unregistered", "wait"):
        _tell(f"does {words[0]}")
        _wait_for_signal() if words.pop(0) == "wait" else time.sleep(FOREVER_SECONDS)
    rank = None if rank_text == "None" else int(rank_text)
    registration = register(socket_path, role=role, rank=rank, index=int(index), incarnation=1, deadline_seconds=20)
    for word in words:
        _tell(f"does {word}")
        if word == "config":
            _tell(f"reads {json.loads(Path(socket_path).with_name('config.json').read_bytes())['model_path']}")
            continue
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
            _tell(f"was given {json.dumps(registration.receive(None))}")
        case "failed":
            registration.failed(value, "the reason")
        case "wait":
            _wait_for_signal()
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
                time.sleep(float(value))
                os._exit(0)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(FOREVER_SECONDS)
        case _:
            raise AssertionError(f"no such behaviour: {word}")
    return None


def _until_stop(registration: Registration) -> int:
    while True:
        message = registration.receive(None)
        assert message is not None
        _tell(f"got {message['type']}")
        if message["type"] == "drain":
            registration.send("drained")
        if message["type"] == "stop":
            registration.bye()
            return 0


def _wait_for_signal() -> None:
    signal.sigwait([signal.SIGUSR1])


def _tell(what: str) -> None:
    # One write, so that lines of several processes do not mix.
    os.write(2, f"stand-in pid {os.getpid()} {what}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
