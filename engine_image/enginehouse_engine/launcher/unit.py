"""The life of one unit: what dies, and comes back, as one. An API server is one; so is a rank, with its core and its workers. Pure.

(Pending ->) Starting -> Serving -> Restarting -> Serving ... -> Dead, and Dead is for ever. A rank that is not wanted any more goes
from wherever it is to Draining, from which it does not come back.

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

from enginehouse_engine.launcher import messages, termination
from enginehouse_engine.launcher.actions import Action, Kill, Send
from enginehouse_engine.launcher.process import API_SERVER, WORKER, Process
from enginehouse_engine.launcher.termination import Cause, Exit
from enginehouse_engine.ray.manager_messages import Ended, Placement

RESTART_PAUSE_SECONDS: Final = 600.0
"""A unit that dies again within so long after a restart is not brought back here: what ails it is not an accident."""


class UnitState(StrEnum):
    """The protocol's words for a rank."""

    PENDING = "Pending"
    """There is no place for it yet."""
    STARTING = "Starting"
    SERVING = "Serving"
    RESTARTING = "Restarting"
    DRAINING = "Draining"
    """It leaves the engine: it finishes what it has, or is on its way out."""
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
    drained_ranks: set[tuple[int, int]] = field(default_factory=set)
    """Ranks and incarnations that left, at which this API server has no request."""
    failed: messages.Failed | None = None
    verdict: Cause | None = None
    """Why it had to be killed: then this, and not how it exited, is what it died of."""
    death: Cause | None = None
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last message of each type that tells it how things are."""
    asked_to_stop: bool = False
    stopped: bool = False
    """By a signal, and not continued."""
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
    """Of a restart, from the death to serving again; of a start or a drain while others serve."""
    over: bool = False
    """This incarnation is: a process of it has died, or it was not wanted any more."""
    leaves: bool = False
    """It is not wanted any more, whatever is wanted later."""
    cut: bool = False
    """Leaving, whoever was left of it was killed: nothing more can be done."""
    culprit: Process | None = None
    """Whose death was the first sign."""
    first_failed: Process | None = None
    """The first that said why it was about to exit."""
    seen: dict[Process, Seen] = field(default_factory=dict)
    fit: messages.Fit | None = None
    """Of a rank: its cache, and the shortest context of all its incarnations, which no API server ever exceeds again."""
    _restarted_at: float = -math.inf

    @property
    def is_api_server(self) -> bool:
        """Else it is a rank."""
        return self.processes[0].role == API_SERVER

    @property
    def rank(self) -> int:
        """Of a rank."""
        return self.processes[0].rank or 0

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
    def is_retiring(self) -> bool:
        """It leaves in order: its core was asked to stop."""
        return self.leaves and self.state is UnitState.DRAINING and any(seen.asked_to_stop for seen in self.seen.values())

    @property
    def is_reaped(self) -> bool:
        """Nothing that was started of this incarnation is left."""
        return all(seen.exited for seen in self.seen.values())

    def alive(self) -> list[Process]:
        """Started and not reaped."""
        return [process for process, seen in self.seen.items() if not seen.exited]

    def answering(self) -> list[Process]:
        """Who answers a ``ping``, between two steps. Nobody while one of them is stopped: the others may be waiting for it."""
        if any(seen.stopped for seen in self.seen.values()):
            return []
        return [process for process, seen in self.seen.items() if seen.listens and process.role != WORKER]

    def serves(self) -> None:
        """What happened before is made good."""
        self.state = UnitState.SERVING
        self.deadline = math.inf
        self.cause = None
        self.culprit = None

    def said(self, process: Process, message: messages.FromProcess) -> None:
        """Keep what it said; what concerns others is not decided here."""
        seen = self.seen[process]
        match message:
            case messages.Stage(stage=stage):
                seen.stage = stage
            case messages.Failed():
                seen.failed = message
                self.first_failed = self.first_failed or process
            case messages.Bound(endpoint=endpoint):
                seen.endpoint = endpoint
            case messages.Published(record=record):
                seen.record = record
            case messages.Ready():
                seen.ready = message
            case messages.Drained():
                seen.drained = True
            case messages.RankDrained(rank=rank, incarnation=incarnation):
                seen.drained_ranks.add((rank, incarnation))
            case messages.Register() | messages.Pong() | Placement() | Ended():
                pass  # A second registration on the same connection says nothing new; the others are kept elsewhere.

    def fits(self, ready: messages.Ready) -> None:
        """What an API server heard from this rank, if it is the present one."""
        for fit in ready.ranks:
            if (fit.rank, fit.incarnation) == (self.processes[0].rank, self.incarnation):
                length = min(fit.max_context_length, self.fit.max_context_length if self.fit else fit.max_context_length)
                self.fit = msgspec.structs.replace(fit, max_context_length=length)

    def fall(self, culprit: Process | None, *, now: float, restart_until: float | None) -> list[Action]:
        """A death has begun. ``restart_until`` is the deadline of a restart; None = it is not asked for."""
        had_served = self.state is UnitState.SERVING
        actions = self.end(asked_first=True)
        self.culprit = culprit
        may_restart = had_served and self.is_in_leader and now - self._restarted_at >= RESTART_PAUSE_SECONDS
        if any(seen.failed is not None and seen.failed.cause == termination.DEVICE_ERROR for seen in self.seen.values()):
            may_restart = False  # Another pod may get another device; here it would be the same one.
        if restart_until is not None and may_restart:
            self.state = UnitState.RESTARTING
            self.deadline = restart_until
            self._restarted_at = now
        return actions

    def is_placed(self, *, deadline: float) -> None:
        """It may start, and serves by then."""
        self.state = UnitState.STARTING
        self.deadline = deadline

    def leave(self, *, drained_by: float, gone_by: float) -> list[Action]:
        """It is not wanted any more. Who serves finishes its requests first; the others have nothing to lose."""
        self.leaves = True
        if self.state is UnitState.SERVING:
            self.state = UnitState.DRAINING
            self.deadline = drained_by
            return []
        state = self.state
        actions = self.end()
        if state is not UnitState.DEAD:
            self.state, self.deadline, self.cut = UnitState.DRAINING, gone_by, True
        return actions

    def retire(self, *, gone_by: float) -> list[Action]:
        """It has drained, or its time for that is over."""
        self.over = True
        self.deadline = gone_by
        return self.ask_to_stop(workers=False)

    def time_out(self, verdict: Cause) -> list[Action]:
        """It did not come back in time."""
        self.culprit = next(iter(self.alive()), None)
        if self.culprit is not None:
            self.seen[self.culprit].verdict = verdict
        self.died(verdict)
        return self.end(asked_first=True)

    def end(self, *, asked_first: bool = False) -> list[Action]:
        """This incarnation is over, and no other follows."""
        self.over = True
        self.state = UnitState.DEAD
        self.deadline = math.inf
        return self.kill(asked_first=asked_first)

    def kill(self, *, asked_first: bool = False) -> list[Action]:
        """Whoever is not gone yet, also one that is dying: it may live on without its pipe, and nobody would see its death.

        ``asked_first``: for their stacks, those that know how to answer.
        """
        victims = [process for process in self.alive() if not self.seen[process].killed]
        for process in victims:
            self.seen[process].killed = True
        return [Kill(process, asked_first=asked_first and self.seen[process].registered) for process in victims]

    def ask_to_stop(self, *, workers: bool) -> list[Action]:
        """Its workers, or all the others: workers go when nobody can ask anything of them any more."""
        chosen = [process for process, seen in self.seen.items() if seen.listens and (process.role == WORKER) is workers]
        for process in chosen:
            self.seen[process].asked_to_stop = True
        return [Send(process, {"type": "stop"}) for process in chosen]

    def begin_next(self) -> tuple[Process, ...]:
        """The next incarnation; the last one must be reaped."""
        return self.begin(self.incarnation + 1)

    def begin(self, incarnation: int) -> tuple[Process, ...]:
        """This incarnation, of which nothing has started; nothing of another may be left."""
        self.processes = tuple(dataclasses.replace(process, incarnation=incarnation) for process in self.processes)
        self.seen = {}
        self.over = False
        self.culprit = None
        self.first_failed = None
        return self.processes

    def death_of(self, process: Process, *, exit: Exit, out_of_memory: bool, evidence: str = "") -> tuple[Cause, bool]:
        """Why a process that is reaped now exited, and whether that was planned."""
        seen = self.seen[process]
        seen.exited = True
        planned = self.culprit != process and (seen.killed or (seen.asked_to_stop and exit.exit_code == 0))
        if seen.verdict is not None:
            death = dataclasses.replace(seen.verdict, process=process, pid=seen.pid, exit=exit)
        else:
            death = termination.cause_of(process, pid=seen.pid, exit=exit, failed=seen.failed, out_of_memory=out_of_memory)
        seen.death = dataclasses.replace(death, evidence=evidence)
        return seen.death, planned

    def died(self, death: Cause) -> None:
        """A process of it died and this is why.

        The first death is the cause. But one whose memory takes long to release is seen after those that broke because of it: so
        before the exit of another process of the same incarnation goes a signal, which never is a consequence; and before one that
        said why it fails goes the first that said so.
        """
        if self.cause is None or self._follows(self.cause, death):
            self.cause = death
        if death.kind == termination.DEVICE_ERROR:
            # Whoever is to blame: the next incarnation would get that device.
            self.state = UnitState.DEAD
            self.deadline = math.inf

    def _follows(self, first: Cause, death: Cause) -> bool:
        """Whether ``first``, although it was seen before, is a consequence of ``death``."""
        seen = None if first.process is None else self.seen.get(first.process)
        if seen is None or first.exit.signal is not None:
            return False
        return death.exit.signal is not None or (seen.failed is not None and death.process == self.first_failed)
