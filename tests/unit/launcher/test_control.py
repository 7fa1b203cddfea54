"""The launcher's side of registrations, with a real process on the other end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from enginehouse_engine.launcher import messages
from enginehouse_engine.launcher.control import ControlServer
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.process import ENGINE_CORE, Process

DEADLINE_SECONDS = 30.0
CORE = Process(role=ENGINE_CORE, rank=0, index=0, incarnation=1)
HELLO = b'{"type":"register","version":1,"role":"engine-core","rank":0,"index":0,"incarnation":1,"pid":1}'
SCRIPT = """
import subprocess, sys
from enginehouse_engine.registration import register
r = register(sys.argv[1], role="engine-core", rank=0, index=0, incarnation=1, deadline_seconds=20)
r.send("bound", endpoint=str(subprocess.Popen(["sleep", "600"], pass_fds=[r._write_end]).pid))
r.receive(None)
"""


@dataclass
class Heard:
    """What a ControlServer tells."""

    descriptors: tuple[int, ...] = ()
    words: list[object] = field(default_factory=list)
    output: int | None = None

    def output_of(self, process: Process) -> int | None:
        return self.output

    def may_register(self, process: Process, *, pid: int) -> str:
        return ""

    def registered(self, process: Process, *, pid: int, descriptors: tuple[int, ...]) -> None:
        self.descriptors = descriptors

    def said(self, process: Process, message: messages.FromProcess) -> None:
        self.words.append(message)

    def pipe_closed(self, process: Process, *, bye: bool) -> None:
        self.words.append("dies")


def test_a_death_is_told_before_it_is_reaped_although_a_descendant_keeps_the_pipe_open(tmp_path: Path) -> None:
    loop, heard = EventLoop(), Heard()
    server = ControlServer(loop, tmp_path / "socket", heard)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "socket")], env=environment, start_new_session=True
    ) as process:

        def hear(count: int) -> list[object]:
            while len(heard.words) < count:
                ready = loop.wait(DEADLINE_SECONDS)
                assert ready, f"nothing more is told after {heard.words}"
                for callback in ready:
                    callback()
            return heard.words

        try:
            (said,) = hear(1)
            assert isinstance(said, messages.Bound)
            assert len(heard.descriptors) == 3, "the monitor gets the hang-up of the lock, too"
            process.kill()
            assert hear(2)[1:] == ["dies"]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    server.forget(CORE)
    for descriptor in heard.descriptors:
        assert not Path(f"/proc/self/fd/{descriptor}").exists(), "given back"


def test_a_process_that_is_given_an_output_writes_there_from_its_registration_on(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    loop, heard = EventLoop(), Heard(output=write_end)
    server = ControlServer(loop, tmp_path / "socket", heard)
    script = SCRIPT.replace("r.receive(None)", "print('to output', flush=True); print('to error', file=sys.stderr, flush=True)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "socket")], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not heard.descriptors:
                for callback in loop.wait(DEADLINE_SECONDS):
                    callback()
            assert process.wait(DEADLINE_SECONDS) == 0
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    text = b""
    while piece := os.read(read_end, 1000):  # to its end: nobody else has it open
        text += piece
    assert text.splitlines() == [b"to output", b"to error"]
    server.forget(CORE)
    os.close(read_end)


def test_a_registration_that_brings_no_pipe_is_refused_in_words(tmp_path: Path) -> None:
    """Nobody could wait for its end: epoll takes no file, and a pidfd, handed over in its place, never hangs up."""
    loop, heard = EventLoop(), Heard()
    ControlServer(loop, tmp_path / "socket", heard)
    pidfd = os.pidfd_open(os.getpid())
    with Path(os.devnull).open() as file:
        for no_pipe in (file.fileno(), pidfd):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as process:
                process.connect(str(tmp_path / "socket"))
                process.settimeout(DEADLINE_SECONDS)
                socket.send_fds(process, [HELLO], [no_pipe, pidfd])
                for _ in ("accepted", "heard"):
                    for callback in loop.wait(DEADLINE_SECONDS):
                        callback()
                answer = json.loads(process.recv(1000))
                assert answer["type"] == "refused"
                assert "must be the read end of a pipe" in answer["message"]
    os.close(pidfd)
    assert not heard.descriptors


def test_a_process_that_talks_without_end_leaves_the_others_their_turn(tmp_path: Path) -> None:
    class Prompter(Heard):
        def said(self, process: Process, message: messages.FromProcess) -> None:
            super().said(process, message)
            assert len(self.words) < 10_000, "the turn never ends"
            talker.send(b'{"type": "drained"}')

    loop, heard = EventLoop(), Prompter()
    server = ControlServer(loop, tmp_path / "socket", heard)
    read_end, write_end = os.pipe()
    pidfd = os.pidfd_open(os.getpid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as talker:
        talker.connect(str(tmp_path / "socket"))
        socket.send_fds(talker, [HELLO], [read_end, pidfd])
        talker.send(b'{"type": "drained"}')
        for _ in ("accepted", "registered", "heard", "heard again"):
            for callback in loop.wait(DEADLINE_SECONDS):
                callback()
    assert len(heard.words) > 1
    server.forget(CORE)
    for descriptor in (read_end, write_end, pidfd):
        os.close(descriptor)
