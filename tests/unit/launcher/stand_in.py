"""Stands in for an API server or an engine core: registers with the real file, then does what the test wants.

    stand_in.py SOCKET ROLE RANK INDEX INCARNATION BEHAVIOUR

A behaviour is one or more of the words below, joined by commas, in order. An API server that does ``cores`` waits for cores that
say ``hello`` and is ready with them, as the real ones do.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from enginehouse_engine.registration import Registration, register

FOREVER_SECONDS = 600
HEARD: dict[str, Any] = {}
"""What came while something else was waited for."""


def main() -> int:
    socket_path, role, rank_text, index, incarnation, behaviour = sys.argv[1:]
    words = behaviour.split(",")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    while words and words[0] in ("unregistered", "wait"):
        _tell(f"does {words[0]}")
        _wait_for_signal() if words.pop(0) == "wait" else time.sleep(FOREVER_SECONDS)
    rank = None if rank_text == "None" else int(rank_text)
    registration = register(socket_path, role=role, rank=rank, index=int(index), incarnation=int(incarnation), deadline_seconds=20)
    folder, hellos, hello = Path(socket_path).parent, None, list[int]()
    for word in words:
        _tell(f"does {word}")
        if word == "cores":
            hellos = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            hellos.bind(str(folder / f"front-{index}-{incarnation}"))
            continue
        if word == "hello":
            hello = [rank or 0, int(incarnation)]
            _say_hello(folder, HEARD["addresses"], hello)
            continue
        if word == "config":
            _tell(f"reads {json.loads(Path(socket_path).with_name('config.json').read_bytes())['model_path']}")
            continue
        code = _act(registration, word, index=int(index), incarnation=int(incarnation))
        if code is not None:
            return code
    return _until_stop(registration, folder=folder, hellos=hellos, hello=hello)


def _act(registration: Registration, word: str, *, index: int, incarnation: int) -> int | None:
    name, _, value = word.partition("=")
    match name:
        case "stage":
            registration.stage(value)
        case "bound":
            registration.send("bound", endpoint=f"ipc://front-{index}-{incarnation}")
        case "publish":
            registration.send("published", record={"of": incarnation})
        case "ready":
            fits = [
                {"rank": int(r), "incarnation": 1, "maxContextLength": 128, "kvBlocks": 8, "blockSize": 16}
                for r in value.split("+")
            ]
            registration.send("ready", ranks=fits, maxContextLength=128)
        case "addresses" | "peers" | "ranks":
            while name not in HEARD:
                message = registration.receive(None)
                assert message is not None
                HEARD[message["type"]] = message
            _tell(f"was given {json.dumps(HEARD[name])}")
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
        case "escape" | "c-escape":
            # A grandchild in a session of its own; the other kind is made behind the interpreter, whose hooks close the pipe.
            pid = os.fork() if name == "escape" else ctypes.PyDLL(None).fork()
            if pid == 0:
                os.setsid()
                time.sleep(float(value))
                os._exit(0)
            _tell(f"has grandchild {pid}")
        case "abort":
            # As a C++ library ends that nobody has caught an exception of.
            os.write(2, f"terminate called after throwing an instance of 'c10::Error'\n  what():  {value}\n".encode())
            ctypes.CDLL(None).abort()
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(FOREVER_SECONDS)
        case _:
            raise AssertionError(f"no such behaviour: {word}")
    return None


def _until_stop(registration: Registration, *, folder: Path, hellos: socket.socket | None, hello: list[int]) -> int:
    known: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([registration, *([hellos] if hellos else [])], [], [])
        if hellos in ready and hellos is not None:
            rank, incarnation = json.loads(hellos.recv(100))
            known[rank] = incarnation
            fits = [
                {"rank": r, "incarnation": k, "maxContextLength": 128, "kvBlocks": 8, "blockSize": 16} for r, k in known.items()
            ]
            registration.send("ready", ranks=fits, maxContextLength=128)
        if registration not in ready:
            continue
        message = registration.receive(None)
        assert message is not None
        if message["type"] == "ping":
            registration.send("pong")
            continue
        if message["type"] in ("ranks", "addresses", "peers"):
            _tell(f"hears {json.dumps(message)}")
            if hello and message["type"] == "addresses":
                _say_hello(folder, message, hello)
            continue
        _tell(f"got {message['type']}")
        if message["type"] == "drain":
            registration.send("drained")
        if message["type"] == "stop":
            registration.bye()
            return 0


def _say_hello(folder: Path, addresses: dict[str, Any], hello: list[int]) -> None:
    """To every API server that waits for cores; as the real ones, it answers each with what it serves now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for front_end in addresses["frontEnds"]:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                sender.sendto(json.dumps(hello).encode(), str(folder / front_end["endpoint"].removeprefix("ipc://")))


def _wait_for_signal() -> None:
    signal.sigwait([signal.SIGUSR1])


def _tell(what: str) -> None:
    # One write, so that lines of several processes do not mix.
    os.write(2, f"stand-in pid {os.getpid()} {what}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
