"""The life of one unit: what dies, and comes back, as one. An API server is one; so is a rank, with its core and its workers. Pure.

Starting -> Serving -> Restarting -> Serving ... -> Dead, and Dead is for ever.

Invariants: with the first death of one of its processes an incarnation is over, and the others are killed; the next one begins
only when all are reaped, because until then they hold memory and devices; the cause is that of the first death since the unit
last served. Does not decide when the engine ends: ``lifecycle.py`` does.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgspec

from enginehouse_engine.config import MembersConfig
from enginehouse_engine.launcher import messages, termination
from enginehouse_engine.launcher.actions import Action, Kill
from enginehouse_engine.launcher.process import API_SERVER, ENGINE_CORE, WORKER, Process
from enginehouse_engine.launcher.termination import Cause, Exit

RESTART_PAUSE_SECONDS: Final = 600.0
"""A unit that dies again within so long after a restart is not brought back here: what ails it is not an accident."""


class UnitState(StrEnum):
    """The protocol's words for a rank."""

    STARTING = "Starting"
    SERVING = "Serving"
    RESTARTING = "Restarting"
    DEAD = "Dead"


@dataclass
class Seen:
    """What is known of one process that was started."""

    pid: int
    registered: bool = False
    stage: str = ""
    endpoint: str = ""
    record: dict[str, Any] | None = None
    ready: messages.Ready | None = None
    drained: bool = False
    failed: messages.Failed | None = None
    death: Cause | None = None
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last message of each type that tells it how things are."""
    asked_to_stop: bool = False
    killed: bool = False
    exited: bool = False

    @property
    def listens(self) -> bool:
        """Can be told something."""
        return self.registered and not self.killed and not self.exited


@dataclass
class Unit:
    """``processes`` are those of the present incarnation."""

    processes: tuple[Process, ...]
    state: UnitState = UnitState.STARTING
    cause: Cause | None = None
    deadline: float = math.inf
    """Of a restart: from the death to serving again."""
    over: bool = False
    """This incarnation is: a process of it has died, or it was not wanted any more."""
    culprit: Process | None = None
    """Whose death was the first sign."""
    first_failed: Process | None = None
    """The first that said why it was about to exit."""
    seen: dict[Process, Seen] = field(default_factory=dict)
    fit: messages.Fit | None = None
    """Of a rank: its cache, and the shortest context of all its incarnations, which no API server ever exceeds again."""
    _verdict: Cause | None = None
    _restarted_at: float = -math.inf

    @property
    def is_api_server(self) -> bool:
        """Else it is a rank."""
        return self.processes[0].role == API_SERVER

    @property
    def incarnation(self) -> int:
        """Of all its processes."""
        return self.processes[0].incarnation

    @property
    def is_in_leader(self) -> bool:
        """All of it; else nobody here can know that the whole of it is gone, and it is not started again."""
        return all(process.member == 0 for process in self.processes)

    @property
    def lives(self) -> bool:
        """Serves, or is about to again."""
        return self.state in (UnitState.SERVING, UnitState.RESTARTING)

    @property
    def is_reaped(self) -> bool:
        """Nothing that was started of this incarnation is left."""
        return all(seen.exited for seen in self.seen.values())

    def alive(self) -> list[Process]:
        """Started and not reaped."""
        return [process for process, seen in self.seen.items() if not seen.exited]

    def serves(self) -> None:
        """What happened before is made good."""
        self.state = UnitState.SERVING
        self.deadline = math.inf
        self.cause = None
        self.culprit = None

    def fits(self, fit: messages.Fit) -> None:
        """What an API server heard from this rank, if it is the present one."""
        if fit.incarnation == self.incarnation:
            length = min(fit.max_context_length, self.fit.max_context_length if self.fit else fit.max_context_length)
            self.fit = msgspec.structs.replace(fit, max_context_length=length)

    def fall(self, culprit: Process | None, *, now: float, restart_until: float | None) -> list[Action]:
        """A death has begun. ``restart_until`` is the deadline of a restart; None = it is not asked for."""
        had_served = self.state is UnitState.SERVING
        actions = self.end()
        self.culprit = culprit
        may_restart = had_served and self.is_in_leader and now - self._restarted_at >= RESTART_PAUSE_SECONDS
        if restart_until is not None and may_restart:
            self.state = UnitState.RESTARTING
            self.deadline = restart_until
            self._restarted_at = now
        return actions

    def time_out(self, verdict: Cause) -> list[Action]:
        """It did not come back in time."""
        self.culprit = next(iter(self.alive()), None)
        self._verdict = verdict
        self.died(verdict)
        return self.end()

    def end(self) -> list[Action]:
        """This incarnation is over, and no other follows."""
        self.over = True
        self.state = UnitState.DEAD
        self.deadline = math.inf
        return self.kill()

    def kill(self) -> list[Action]:
        """Whoever is not gone yet, also one that is dying: it may live on without its pipe, and nobody would see its death."""
        victims = [process for process in self.alive() if not self.seen[process].killed]
        for process in victims:
            self.seen[process].killed = True
        return [Kill(process) for process in victims]

    def begin_next(self) -> tuple[Process, ...]:
        """The next incarnation; the last one must be reaped."""
        self.processes = tuple(dataclasses.replace(process, incarnation=process.incarnation + 1) for process in self.processes)
        self.seen = {}
        self.over = False
        self.culprit = None
        self.first_failed = None
        return self.processes

    def death_of(self, process: Process, *, exit: Exit, out_of_memory: bool) -> tuple[Cause, bool]:
        """Why a process that is reaped now exited, and whether that was planned."""
        seen = self.seen[process]
        seen.exited = True
        planned = self.culprit != process and (seen.killed or (seen.asked_to_stop and exit.exit_code == 0))
        if self._verdict is not None and self.culprit == process:
            seen.death = dataclasses.replace(self._verdict, process=process, pid=seen.pid, exit=exit)
        else:
            seen.death = termination.cause_of(process, pid=seen.pid, exit=exit, failed=seen.failed, out_of_memory=out_of_memory)
        return seen.death, planned

    def died(self, death: Cause) -> None:
        """A process of it died and this is why.

        The first death is the cause. But one whose memory takes long to release is seen after those that broke because of it: so
        before the exit of another process of the same incarnation goes a signal, which never is a consequence; and before one that
        said why it fails goes the first that said so.
        """
        if self.cause is None or self._follows(self.cause, death):
            self.cause = death

    def _follows(self, first: Cause, death: Cause) -> bool:
        """Whether ``first``, although it was seen before, is a consequence of ``death``."""
        seen = None if first.process is None else self.seen.get(first.process)
        if seen is None or first.exit.signal is not None:
            return False
        return death.exit.signal is not None or (seen.failed is not None and death.process == self.first_failed)


def engine_units(*, api_servers: int, ranks: int, workers: int, workers_each: int = 0) -> tuple[Unit, ...]:
    """All that one engine consists of, API servers first; ``workers`` are each rank's own, ``workers_each`` are in one member."""
    front = [(Process(role=API_SERVER, rank=None, index=index, incarnation=1),) for index in range(api_servers)]
    rest = [_rank(rank, workers=workers, workers_each=workers_each) for rank in range(ranks)]
    return tuple(Unit(processes=processes) for processes in (*front, *rest))


def member_units(*, member: int, ranks: int, workers: int, workers_each: int) -> tuple[Unit, ...]:
    """What lives in a member that is not the leader: parts of ranks."""
    parts = [_rank(rank, workers=workers, workers_each=workers_each) for rank in range(ranks)]
    mine = [tuple(process for process in part if process.member == member) for part in parts]
    return tuple(Unit(processes=processes) for processes in mine if processes)


def _rank(rank: int, *, workers: int, workers_each: int) -> tuple[Process, ...]:
    core = Process(role=ENGINE_CORE, rank=rank, index=0, incarnation=1)
    members = MembersConfig(workers_each=workers_each)
    return (
        core,
        *(
            Process(role=WORKER, rank=rank, index=index, incarnation=1, member=members.of(rank * workers + index))
            for index in range(workers)
        ),
    )
