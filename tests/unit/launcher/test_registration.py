"""Death pipe and lock with real processes: one closes, the other is lost, when, and only when, the registered process dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enginehouse_engine.launcher.held_lock import hang_up_at_loss
from enginehouse_engine.registration import LOCK_BYTES

DEADLINE_SECONDS = 30.0

_PRELUDE = """
import os, subprocess, sys, time
from enginehouse_engine.registration import *
def go(): return register(sys.argv[1], role="engine-core", rank=0, index=0, incarnation=1, deadline_seconds=20)
"""


class Registered:
    """The launcher's side of one process that runs ``script``."""

    def __init__(self, folder: Path, script: str, *, answer: dict[str, Any] | None = None) -> None:
        path = folder / "launcher.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.bind(str(path))
            server.listen()
            server.settimeout(DEADLINE_SECONDS)
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            command = [sys.executable, "-c", _PRELUDE + script, str(path)]
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            self.control, _ = server.accept()
        self.control.settimeout(DEADLINE_SECONDS)
        data, descriptors, _, _ = socket.recv_fds(self.control, 65536, 4)
        self.message = json.loads(data)
        self.pipe, self.pidfd, self.lock = descriptors
        self.control.send(json.dumps(answer or {"type": "registered", "message": ""}).encode())

    def hear(self) -> dict[str, Any]:
        data = self.control.recv(65536)
        assert data, self.process.communicate()[1]
        message: dict[str, Any] = json.loads(data)
        return message

    def closed(self, *, within_seconds: float) -> bool:
        return hung_up(self.pipe, within_seconds=within_seconds)

    def said(self) -> bytes:
        waiting = struct.unpack("i", fcntl.ioctl(self.pipe, termios.FIONREAD, b"\0" * 4))[0]
        return os.read(self.pipe, waiting) if waiting else b""

    def close(self) -> None:
        # With its descendants: a test that fails may have left one.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.control.close()
        os.close(self.pipe)
        os.close(self.pidfd)
        os.close(self.lock)


def hung_up(read_end: int, *, within_seconds: float) -> bool:
    poller = select.poll()
    poller.register(read_end, 0)
    return bool(poller.poll(within_seconds * 1000))


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Any]:
    started: list[Registered] = []

    def start(script: str, **arguments: Any) -> Registered:
        started.append(Registered(tmp_path, script, **arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_registration_names_the_process_and_hands_over_its_pipe_and_pidfd(launched: Any) -> None:
    one = launched("go(); time.sleep(600)")
    identity = {"version": 1, "role": "engine-core", "rank": 0, "index": 0, "incarnation": 1, "pid": one.process.pid}
    assert one.message == {"type": "register", **identity}
    assert next(iter(one.message)) == "type"
    signal.pidfd_send_signal(one.pidfd, signal.SIGKILL)
    assert one.process.wait(DEADLINE_SECONDS) == -signal.SIGKILL


def test_the_pipe_stays_open_while_the_process_lives_and_closes_when_it_is_killed(launched: Any) -> None:
    one = launched("go().send('up'); time.sleep(600)")
    assert one.hear()["type"] == "up"
    assert not one.closed(within_seconds=0)
    one.process.kill()
    assert one.closed(within_seconds=DEADLINE_SECONDS)
    assert one.said() == b""


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)", "raise RuntimeError", "os.kill(os.getpid(), 11)"])
def test_an_exit_of_any_kind_without_bye_leaves_the_pipe_empty(launched: Any, end: str) -> None:
    one = launched(f"r = go(); {end}")
    assert one.closed(within_seconds=DEADLINE_SECONDS)
    assert one.said() == b""


def test_bye_lies_in_the_pipe_and_does_not_close_it(launched: Any) -> None:
    one = launched("r = go(); r.bye(); r.send('said'); r.receive(None)")
    assert one.hear()["type"] == "said"
    assert not one.closed(within_seconds=0)
    one.control.send(b'{"type": "stop"}')
    assert one.closed(within_seconds=DEADLINE_SECONDS)
    assert one.said() == b"bye\n"


@pytest.mark.parametrize(
    "descendant",
    [
        "pid = os.fork()\nif pid == 0: time.sleep(600)",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=time.sleep, args=(600,)); p.start(); pid = p.pid",
        "pid = subprocess.Popen(['sleep', '600']).pid",
        "pid = subprocess.Popen(['sleep', '600'], close_fds=False).pid",
        "pid = subprocess.Popen(['sleep', '600'], preexec_fn=lambda: None, close_fds=False).pid",
    ],
    ids=["fork", "multiprocessing fork", "exec", "exec with open descriptors", "fork and exec"],
)
def test_a_descendant_that_lives_on_does_not_hide_the_death(launched: Any, descendant: str) -> None:
    one = launched(f"r = go()\n{descendant}\nr.send('descendant', pid=pid)\ntime.sleep(600)")
    descendant_pid = one.hear()["pid"]
    pidfd = os.pidfd_open(descendant_pid)
    try:
        one.process.kill()
        assert one.closed(within_seconds=DEADLINE_SECONDS)
        assert not select.select([pidfd], [], [], 0)[0], "the descendant was to outlive its parent"
        assert one.control.recv(100) == b"", "the control socket is not to be inherited either"
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(3)", "raise RuntimeError", "r.bye()", "os._exit(0)"])
def test_the_lock_is_lost_with_an_end_of_any_kind_and_not_before(launched: Any, end: str) -> None:
    one = launched(f"r = go(); r.send('up'); r.receive(None)\n{end}")
    assert one.hear()["type"] == "up"
    lost = hang_up_at_loss(one.lock)
    assert lost is not None
    assert not hung_up(lost, within_seconds=0)
    one.control.send(b'{"type": "stop"}')
    assert hung_up(lost, within_seconds=DEADLINE_SECONDS)
    os.close(lost)


def test_the_lock_is_lost_although_a_descendant_keeps_the_pipe_open(launched: Any) -> None:
    """A fork in C runs no hook of Python that closes the write end."""
    script = "r = go()\npid = subprocess.Popen(['sleep', '600'], pass_fds=[r._write_end]).pid\nr.send('descendant', pid=pid)"
    one = launched(f"{script}\ntime.sleep(600)")
    one.hear()
    lost = hang_up_at_loss(one.lock)
    assert lost is not None
    one.process.kill()
    assert hung_up(lost, within_seconds=DEADLINE_SECONDS)
    one.process.wait(DEADLINE_SECONDS)
    assert not one.closed(within_seconds=0)
    os.close(lost)


def test_a_forked_child_neither_holds_nor_loses_the_lock(launched: Any) -> None:
    one = launched("r = go()\npid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)\nr.send('alone')\ntime.sleep(600)")
    assert one.hear()["type"] == "alone"
    lost = hang_up_at_loss(one.lock)
    assert lost is not None
    assert not hung_up(lost, within_seconds=0)
    one.process.kill()
    assert hung_up(lost, within_seconds=DEADLINE_SECONDS)
    os.close(lost)


def test_a_lock_that_was_lost_before_anybody_waited_hangs_up(launched: Any) -> None:
    one = launched("go()")
    one.process.wait(DEADLINE_SECONDS)
    lost = hang_up_at_loss(one.lock)
    assert lost is not None
    assert hung_up(lost, within_seconds=DEADLINE_SECONDS)
    os.close(lost)


def test_a_lock_that_nobody_holds_is_not_waited_for() -> None:
    """Where the C library keeps its locks in another way, its word says nothing, and least of all that somebody has died."""
    file = os.memfd_create("free", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, LOCK_BYTES)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    assert hang_up_at_loss(file) is None
    os.close(file)


def open_pipes() -> int:
    return sum(entry.readlink().name.startswith("pipe:") for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())


def test_a_lock_is_not_waited_for_where_no_thread_can_be_started(launched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose limit of tasks is reached."""
    one = launched("go().send('up'); time.sleep(600)")
    assert one.hear()["type"] == "up"

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    before = open_pipes()
    assert hang_up_at_loss(one.lock) is None
    assert open_pipes() == before


@pytest.mark.parametrize("size", [0, LOCK_BYTES], ids=["empty", "not sealed"])
def test_a_file_that_may_shrink_is_no_lock(size: int) -> None:
    """Who reads beyond the end of a mapped file is killed."""
    file = os.memfd_create("no lock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    with pytest.raises(ValueError, match=r"memory file"):
        hang_up_at_loss(file)
    os.close(file)


def test_the_write_end_is_the_highest_descriptor_and_close_on_exec(launched: Any) -> None:
    script = """
r = go()
here = {int(fd): os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')}
pipes = [fd for fd in here if fd > 2 and here[fd].startswith('pipe')]
r.send('found', pipes=pipes, highest=max(here), inheritable=os.get_inheritable(pipes[0]))
r.receive(None)
"""
    found = launched(script).hear()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert found["pipes"] == [found["highest"]]
    assert found["highest"] >= min(limit, 16 * 1024) - 16
    assert found["inheritable"] is False


def test_the_process_dies_with_its_parent(launched: Any) -> None:
    one = launched("if pid := os.fork():\n os.waitpid(pid, 0)\nr = go(); r.send('up'); time.sleep(600)")
    assert one.hear()["type"] == "up"
    one.process.kill()
    assert one.closed(within_seconds=DEADLINE_SECONDS)


def test_a_refused_process_gets_the_reason(launched: Any) -> None:
    one = launched("go()", answer={"type": "refused", "message": "rank 0 is taken"})
    assert one.process.wait(DEADLINE_SECONDS) == 1
    assert "RegistrationError: the launcher refused engine-core: rank 0 is taken" in one.process.stderr.read()


def test_a_launcher_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "nobody")
    script = f"import sys; sys.argv[1:] = [{missing!r}]\n{_PRELUDE}\ngo()"
    ended = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True
    )
    assert f"RegistrationError: cannot register engine-core with the launcher at {missing}" in ended.stderr


def test_a_launcher_that_does_not_answer_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    path = str(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(path)
        server.listen()
        script = f"{_PRELUDE}\nregister({path!r}, role='api-server', rank=None, index=0, incarnation=1, deadline_seconds=0.1)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )
    assert "did not answer api-server in 0 s" in ended.stderr


def test_end_of_file_from_the_launcher_is_raised_and_not_taken_for_a_message(launched: Any) -> None:
    one = launched("go().receive(None)")
    one.control.shutdown(socket.SHUT_RDWR)
    assert one.process.wait(DEADLINE_SECONDS) == 1
    assert "LauncherGone: the launcher closed the control socket" in one.process.stderr.read()


@pytest.mark.parametrize("datagram", [b"not json", b"[]", b'{"no": "type"}', b'{"type": 3}'])
def test_a_message_that_is_none_is_refused(launched: Any, datagram: bytes) -> None:
    one = launched("go().receive(None)")
    one.control.send(datagram)
    assert one.process.wait(DEADLINE_SECONDS) == 1
    assert "RegistrationError" in one.process.stderr.read()


def test_looking_once_returns_none_and_messages_come_in_order(launched: Any) -> None:
    one = launched(
        "r = go(); r.send('first', found=r.receive()); r.send('second', found=[r.receive(20), r.receive(20)]); r.receive(None)"
    )
    assert one.hear()["found"] is None
    one.control.send(b'{"type": "a"}')
    one.control.send(b'{"type": "b"}')
    assert [message["type"] for message in one.hear()["found"]] == ["a", "b"]


def test_a_long_reason_is_cut_at_its_beginning_and_a_long_message_refused(launched: Any) -> None:
    script = "r = go(); r.failed('Exception', 'x' * 100000 + 'the end'); r.send('big', text='x' * 70000)"
    one = launched(script)
    failed = one.hear()
    assert failed["class"] == "Exception"
    assert failed["message"].endswith("the end")
    assert one.process.wait(DEADLINE_SECONDS) == 1
    assert "has 70" in one.process.stderr.read()


def test_importing_the_registration_imports_the_standard_library_only() -> None:
    code = "import sys, enginehouse_engine.registration; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    foreign = {module for module in found if module.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"__main__", "enginehouse_engine", "enginehouse_engine.registration"}


def test_no_descriptor_is_left_open_when_registering_fails(tmp_path: Path) -> None:
    script = f"""{_PRELUDE}
before = os.listdir('/proc/self/fd')
for _ in range(3):
    try: register({str(tmp_path / "nobody")!r}, role='worker', rank=0, index=0, incarnation=1, deadline_seconds=1)
    except RegistrationError: pass
assert os.listdir('/proc/self/fd') == before, os.listdir('/proc/self/fd')
"""
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_registered_process_shows_the_stacks_of_all_threads_and_then_dies_of_the_signal(launched: Any, number: int) -> None:
    parked = "import threading\nis_there = threading.Event()\ndef parked(): is_there.set(); threading.Event().wait()"
    threads = f"{parked}\nthreading.Thread(target=parked, daemon=True).start()\nis_there.wait()"
    one = launched(f"{threads}\ndef here(r): r.send('up'); r.receive(None)\nhere(go())")
    assert one.hear()["type"] == "up"
    one.process.send_signal(number)
    _, shown = one.process.communicate(timeout=DEADLINE_SECONDS)
    assert one.process.returncode == -number
    assert (shown.count("most recent call first"), " in here\n" in shown, " in parked\n" in shown) == (2, True, True)
