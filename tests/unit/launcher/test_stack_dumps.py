"""Processes that are about to be killed show where they were, and nobody is waited for who cannot."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from enginehouse_engine.launcher import stack_dumps
from enginehouse_engine.launcher.actors import Actors
from enginehouse_engine.launcher.children import Children, Gone
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.logs import Logs
from enginehouse_engine.launcher.process import WORKER, Process
from enginehouse_engine.launcher.stack_dumps import StackDumps
from enginehouse_engine.launcher.termination import Exit

DEADLINE_SECONDS = 30.0
FIRST, SECOND, THIRD = (Process(role=WORKER, rank=0, index=index, incarnation=1) for index in range(3))

ARMED = """
import os, signal, sys, time
from enginehouse_engine.registration import show_stacks_at_the_end
show_stacks_at_the_end()
def where_it_waits():
    os.write(2, b"waits\\n")
    time.sleep(600)
"""


class Stage:
    """Children, their logs and their stacks, as the launcher has them."""

    def __init__(self) -> None:
        self.output = os.open(os.devnull, os.O_WRONLY)
        self.logs = Logs(self.output)
        self.logs.start()
        self.children = Children()
        self.stacks = StackDumps(Actors(self.children, EventLoop(), gone=lambda *_: None), self.logs)
        self.pids: dict[Process, int] = {}
        self.reaped: dict[Process, Gone] = {}

    def start(self, process: Process, script: str, *, until: bytes = b"waits\n") -> int:
        """Once it has written ``until``; its pid."""
        end = self.logs.open(process)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        pid = self.children.spawn(
            process, [sys.executable, "-c", script], standard_error=end, descriptors={}, environment=environment
        )
        os.close(end)
        self.pids[process] = pid
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self.logs.kept(process).endswith(until):
            assert time.monotonic() < deadline, self.logs.kept(process)
            time.sleep(0.001)
        return pid

    def wait_until_dying(self, process: Process) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self.children.is_dying(process):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def gone(self, process: Process) -> Gone:
        """Wait for it and reap it."""
        pid = self.pids.pop(process)
        if process not in self.reaped:
            pidfd = os.pidfd_open(pid)
            assert select.select([pidfd], [], [], DEADLINE_SECONDS)[0]
            os.close(pidfd)
        self.reaped |= {gone.process: gone for gone in self.children.reap()}
        return self.reaped[process]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    # A busy machine gets its time.
    monkeypatch.setattr(stack_dumps, "ANSWER_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(stack_dumps, "MOST_SECONDS", DEADLINE_SECONDS)
    one = Stage()
    yield one
    for process in one.pids:
        one.children.kill(process)
    for process in list(one.pids):
        one.gone(process)
    one.logs.close()
    os.close(one.output)


def test_survivors_show_where_they_were_and_go_by_it(stage: Stage) -> None:
    stage.start(FIRST, f"{ARMED}where_it_waits()")
    stage.start(SECOND, f"{ARMED}where_it_waits()")
    stage.stacks.take([FIRST, SECOND])
    stage.children.kill(FIRST)
    text = stage.stacks.evidence(THIRD)
    assert "worker 0 of rank 0 was at <string>:" in text
    assert "worker 1 of rank 0 was at <string>:" in text
    assert text.count("where_it_waits") == 2
    assert b"most recent call first" in stage.logs.kept(FIRST), "the whole of it is in the log"
    for process in (FIRST, SECOND):
        gone = stage.gone(process)
        assert (gone.exit, gone.died_first) == (Exit(signal=signal.SIGQUIT), False), "it died of being asked"


def test_a_process_inside_a_library_that_never_returns_shows_where_it_was(stage: Stage) -> None:
    """The main thread holds the interpreter's lock all the time."""
    script = f"import re\n{ARMED}def stuck():\n os.write(2, b'waits\\n')\n re.match(r'(a*)*b', 'a' * 64)\nstuck()"
    stage.start(FIRST, script)
    stage.stacks.take([FIRST])
    assert "in stuck" in stage.logs.kept(FIRST).decode()
    assert " stuck" in stage.stacks.evidence(THIRD)


def test_a_stopped_process_is_not_asked_and_not_waited_for(stage: Stage) -> None:
    pid = stage.start(FIRST, f"{ARMED}where_it_waits()")
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    assert not stage.children.ask_for_stacks(FIRST)
    stage.stacks.take([FIRST])
    stage.children.kill(FIRST)
    assert stage.gone(FIRST).exit == Exit(signal=signal.SIGKILL)
    assert stage.stacks.evidence(THIRD) == ""


def test_one_that_does_not_answer_is_named_and_killed_all_the_same(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    stage.start(FIRST, f"{ARMED}signal.signal(signal.SIGQUIT, signal.SIG_IGN)\nwhere_it_waits()")
    stage.stacks.take([FIRST])
    assert stage.stacks.evidence(THIRD) == "worker 0 of rank 0 has not told where it was"
    stage.children.kill(FIRST)
    assert stage.gone(FIRST) == Gone(FIRST, Exit(signal=signal.SIGKILL), died_first=False)


def test_deaths_one_after_the_other_wait_a_tenth_of_a_second_together(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(stage.children, "ask_for_stacks", lambda process: True)
    monkeypatch.setattr(stage.children, "is_dying", lambda process: False)
    for number in range(20):
        stage.stacks.take([replace(FIRST, rank=number)])
    assert clock[0] == pytest.approx(100.1, abs=0.005)
    clock[0] += 1.0
    stage.stacks.take([FIRST])
    assert clock[0] == pytest.approx(101.15, abs=0.01), "and the next death is a new one"


@pytest.mark.parametrize(
    ("end", "exit", "died_first"),
    [
        ("os.kill(os.getpid(), 9)", Exit(signal=9), True),
        ("sys.exit(3)", Exit(exit_code=3), True),
        ("os.kill(os.getpid(), 11)", Exit(signal=11), False),
    ],
    ids=["killed by somebody", "exit", "by the walk over its stacks"],
)
def test_who_dies_of_something_else_while_asked_is_told_from_who_dies_of_being_asked(
    stage: Stage, end: str, exit: Exit, died_first: bool
) -> None:
    handler = f"signal.signal(signal.SIGQUIT, lambda *_: {end})\nos.write(2, b'waits\\n')\nsignal.pause()"
    stage.start(FIRST, f"import os, signal, sys\n{handler}")
    assert stage.children.ask_for_stacks(FIRST)
    stage.wait_until_dying(FIRST)
    stage.children.kill(FIRST)
    stage.children.kill(FIRST)  # said again, when it is dying of the first
    assert stage.gone(FIRST) == Gone(FIRST, exit, died_first=died_first)


def test_a_pid_that_was_reaped_and_given_to_a_stranger_is_never_signalled(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.start(FIRST, "import os; os.write(2, b'waits\\n')")
    stage.gone(FIRST)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a stranger was signalled"))
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("a stranger's group was signalled"))
    stage.stacks.take([FIRST])
    stage.children.kill(FIRST)
    assert stage.children.is_dying(FIRST)


def test_an_incarnation_that_follows_has_no_part_in_what_was_told_before(stage: Stage) -> None:
    stage.start(FIRST, f"{ARMED}where_it_waits()")
    stage.stacks.take([FIRST])
    later = replace(SECOND, incarnation=2)
    assert stage.stacks.evidence(later) == ""
    assert "where_it_waits" in stage.stacks.evidence_of_all()
    stage.stacks.forget(replace(FIRST, incarnation=2))
    assert stage.stacks.evidence_of_all() == ""


@pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 0])
def test_no_process_writes_a_core_dump_and_no_program_of_the_node_is_handed_one(tmp_path: Path, hard: int) -> None:
    """1 is the limit that core(5) treats as none at all; a program named in core_pattern gets a core in spite of a limit of 0."""
    script = f"""
import os, resource
resource.setrlimit(resource.RLIMIT_CORE, ({hard}, {hard}))
from enginehouse_engine.launcher import children
children.become_reaper()
assert resource.getrlimit(resource.RLIMIT_CORE) == ({0 if hard == 0 else 1}, {hard})
pid = os.posix_spawn("/bin/sh", ["sh", "-c", "kill -SEGV $$"], os.environ)
info = os.waitid(os.P_PID, pid, os.WEXITED)
assert (info.si_code, info.si_status) == (os.CLD_KILLED, 11), info
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", script], environment)
    assert os.waitpid(pid, 0)[1] == 0
