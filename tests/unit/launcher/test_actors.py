"""Processes that are no children of the launcher: signalled and waited for by their pidfds."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from enginehouse_engine.launcher import actors as module
from enginehouse_engine.launcher import pidfd_exit
from enginehouse_engine.launcher.actors import Actors
from enginehouse_engine.launcher.children import Children
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.process import WORKER, Process
from enginehouse_engine.launcher.process_state import is_stopped
from enginehouse_engine.launcher.termination import Exit

ACTOR = Process(role=WORKER, rank=0, index=0, incarnation=1)
OTHER_PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as a raylet does
signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # as an actor does when it registers: who started us may have it ignored
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
sys.stdin.read()
"""


class Stage:
    """An actor, and who hears of its end."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen([sys.executable, "-c", OTHER_PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.parent.stdout is not None
        self.pid = int(self.parent.stdout.readline())
        self.pidfd = os.pidfd_open(self.pid)
        self.heard: list[tuple[Exit, bool, str]] = []
        self.loop = EventLoop()
        self.actors = Actors(Children(), self.loop, gone=lambda _, exit, first, told: self.heard.append((exit, first, told)))
        self.actors.add(ACTOR, pid=self.pid, pidfd=self.pidfd)

    def wait(self) -> None:
        for callback in self.loop.wait(60.0):
            callback()

    def close(self) -> None:

        if not self.heard:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.pidfd)
        assert self.parent.stdin is not None
        self.parent.stdin.close()
        self.parent.wait()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not say how somebody else's child ended."""
    monkeypatch.setattr(pidfd_exit, "exit_of", lambda pidfd: None)


def test_an_actor_is_killed_and_the_kernel_says_how_it_ended(stage: Stage) -> None:
    assert not stage.actors.is_dying(ACTOR)
    stage.actors.kill(ACTOR)
    stage.wait()
    if not stage.heard:  # a kernel that does not say
        stage.actors.judge(math.inf)
    assert stage.heard[0][1:] == (False, "")
    assert stage.heard[0][0] in (Exit(signal=9), Exit())
    assert stage.actors.is_dying(ACTOR), "it is gone"


def test_where_the_kernel_does_not_say_ray_does(stage: Stage, silent: None) -> None:
    stage.actors.kill(ACTOR)
    stage.wait()
    assert stage.heard == []
    stage.actors.judge(time.monotonic())
    assert stage.heard == [], "there may be more to come"
    stage.actors.told(ACTOR, "what Ray said")
    stage.actors.judge(time.monotonic())
    assert stage.heard == [(Exit(), False, "what Ray said")]


def test_what_ray_said_before_counts_too(stage: Stage, silent: None) -> None:
    stage.actors.told(ACTOR, "what Ray said")
    assert stage.actors.retry_at == math.inf, "it lives as long as its pidfd says so"
    stage.actors.kill(ACTOR)
    stage.wait()
    assert stage.heard == [(Exit(), False, "what Ray said")]


def test_an_orphan_is_told_as_soon_as_it_is_reaped(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Exit] = []
    monkeypatch.setattr(pidfd_exit, "exit_of", lambda pidfd: said[0] if said else None)
    stage.actors.orphans_reaped()
    stage.actors.kill(ACTOR)
    stage.wait()
    assert stage.heard == []
    said.append(Exit(signal=9))
    stage.actors.orphans_reaped()
    assert stage.heard == [(Exit(signal=9), False, "")]


def test_where_nobody_says_it_is_just_gone(stage: Stage, silent: None) -> None:
    stage.actors.kill(ACTOR)
    stage.wait()
    assert stage.actors.retry_at <= time.monotonic() + module.PATIENCE_SECONDS
    stage.actors.judge(stage.actors.retry_at)
    assert stage.heard == [(Exit(), False, "")]
    assert stage.actors.retry_at == math.inf


def test_one_that_is_stopped_is_not_asked_for_its_stacks(stage: Stage) -> None:
    os.kill(stage.pid, signal.SIGSTOP)
    while not is_stopped(stage.pid):
        time.sleep(0.001)
    assert not stage.actors.ask_for_stacks(ACTOR)
    os.kill(stage.pid, signal.SIGCONT)


def test_one_that_is_asked_for_its_stacks_dies_of_that_and_of_nothing_before(stage: Stage) -> None:
    assert stage.actors.ask_for_stacks(ACTOR)
    while not stage.actors.is_dying(ACTOR):
        time.sleep(0.001)
    stage.actors.kill(ACTOR)
    stage.wait()
    if not stage.heard:
        stage.actors.judge(math.inf)
    assert stage.heard[0][0] in (Exit(signal=signal.SIGQUIT), Exit())
    assert not stage.heard[0][1]
