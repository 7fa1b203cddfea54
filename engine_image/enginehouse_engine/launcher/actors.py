"""Processes of this pod that Ray has started: asked, killed and waited for like children, though they are the raylet's.

Invariants: nobody but the process that registered is ever meant, since its pidfd is what is signalled and waited for; its end is
told once, with how it ended: the kernel's word, else, within ``PATIENCE_SECONDS``, what Ray has told the manager, else nothing.
Everybody who is no actor is a child. Does not reap: the raylet does.
"""

from __future__ import annotations

import math
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from enginehouse_engine.launcher import pidfd_exit
from enginehouse_engine.launcher.children import Children
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.process_state import is_dying, is_stopped
from enginehouse_engine.launcher.termination import Exit

PATIENCE_SECONDS: Final = 1.0
"""What an actor's launcher sees of its end, and what the manager hears of it, come within milliseconds of each other."""

Gone = Callable[[Process, Exit, bool, str], None]
"""Who, how, whether its end had begun before it was killed here, and what Ray said of it."""


@dataclass
class _Actor:
    pid: int
    pidfd: int
    was_asked: bool = False
    """For its stacks, of which it dies."""
    was_killed: bool = False
    died_first: bool = False
    judged_at: float = math.inf
    """It is gone, and so long somebody may still say how it ended."""
    told: str = ""


class Actors:
    """Those that have registered and are not gone."""

    def __init__(self, children: Children, loop: EventLoop, *, gone: Gone) -> None:
        self._children = children
        self._loop = loop
        self._gone = gone
        self._actors: dict[Process, _Actor] = {}

    @property
    def retry_at(self) -> float:
        """When :meth:`judge` is due."""
        return min((actor.judged_at for actor in self._actors.values()), default=math.inf)

    def add(self, process: Process, *, pid: int, pidfd: int) -> None:
        """It has registered. The descriptor stays the caller's, open until its end is told."""
        self._actors[process] = _Actor(pid=pid, pidfd=pidfd)
        self._loop.watch(pidfd, lambda: self._ended(process), events=select.EPOLLIN)

    def told(self, process: Process, message: str) -> None:
        """What Ray says of its end."""
        actor = self._actors.get(process)
        if actor is not None:
            actor.told = message
            if actor.judged_at < math.inf:
                actor.judged_at = -math.inf

    def judge(self, now: float) -> None:
        """Nobody has said more of these."""
        for process, actor in list(self._actors.items()):
            if now >= actor.judged_at:
                self._over(process, pidfd_exit.exit_of(actor.pidfd) or Exit())

    def orphans_reaped(self) -> None:
        """Those whose raylet is gone are reaped by the launcher, and only then the kernel says how they ended."""
        for process, actor in list(self._actors.items()):
            if actor.judged_at < math.inf and (exit := pidfd_exit.exit_of(actor.pidfd)) is not None:
                self._over(process, exit)

    def ask_for_stacks(self, process: Process) -> bool:
        """See Children."""
        actor = self._actors.get(process)
        if actor is None:
            return self._children.ask_for_stacks(process)
        if is_stopped(actor.pid) or is_dying(actor.pid):
            return False
        actor.was_asked = _signal(actor, signal.SIGQUIT)
        return actor.was_asked

    def is_dying(self, process: Process) -> bool:
        """See Children."""
        actor = self._actors.get(process)
        return self._children.is_dying(process) if actor is None else is_dying(actor.pid)

    def kill(self, process: Process) -> None:
        """See Children; what an actor has started itself its raylet ends."""
        actor = self._actors.get(process)
        if actor is None:
            self._children.kill(process)
        elif not actor.was_killed:
            actor.was_killed, actor.died_first = True, is_dying(actor.pid)
            _signal(actor, signal.SIGKILL)

    def _ended(self, process: Process) -> None:
        actor = self._actors[process]
        self._loop.forget(actor.pidfd)
        exit = pidfd_exit.exit_of(actor.pidfd)
        if exit is not None or actor.told:
            self._over(process, exit or Exit())
        else:
            actor.judged_at = time.monotonic() + PATIENCE_SECONDS

    def _over(self, process: Process, exit: Exit) -> None:
        actor = self._actors.pop(process)
        # As of a child that was asked: at worst it died of the asking.
        of_asking = actor.was_asked and exit.exit_code is None and exit.signal != signal.SIGKILL
        self._gone(process, exit, actor.died_first and not of_asking, actor.told)


def _signal(actor: _Actor, number: signal.Signals) -> bool:
    try:
        signal.pidfd_send_signal(actor.pidfd, number)
    except ProcessLookupError:
        return False  # It is reaped: its end is about to be told.
    return True
