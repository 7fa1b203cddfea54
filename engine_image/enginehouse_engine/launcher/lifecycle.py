"""The life of one engine: what was seen of its processes, and what the launcher does about it. Pure; the clock is passed in.

Starting -> Serving -> Draining -> Stopping -> Ended, above its units (``unit.py``): API servers and ranks. Every method tells what
happened and returns what to do, in order.

Invariants: an exit that nobody asked for is a death, whatever its code; while the engine serves, a death is its unit's affair and
ends the engine only when no rank, or no API server, is left; the engine's cause is the first death that was not made good; after a
request to stop nothing is started; every phase but Serving has a deadline, and a missed one names who was missing.
Does no I/O: ``launch.py`` does what is returned here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from enginehouse_engine.launcher import messages, publications, readiness, termination
from enginehouse_engine.launcher.actions import Action, FetchModel, Report, Send, Start
from enginehouse_engine.launcher.phase import (
    DRAIN_MARGIN_SECONDS,
    REAP_SECONDS,
    SETTLE_SECONDS,
    STOP_AFTER_DEATH_SECONDS,
    STOP_SECONDS,
    Phase,
    member_word,
    rank_word,
)
from enginehouse_engine.launcher.process import ENGINE_CORE, MODEL_FETCH, WORKER, Process
from enginehouse_engine.launcher.termination import Cause, Exit
from enginehouse_engine.launcher.unit import Seen, Unit, UnitState


@dataclass
class Lifecycle:
    """``units`` are all that the engine consists of; ``now`` is any monotonic clock, in seconds, everywhere the same."""

    units: tuple[Unit, ...]
    replica_uid: str
    startup_timeout_seconds: float
    drain_timeout_seconds: float
    now: float
    monitor: str = ""
    """The monitor's socket, for messages; empty = no monitor."""

    phase: Phase = Phase.STARTING
    _deadline: float = field(init=False)
    _stored: bool = False
    _fetch: Unit | None = None
    """The model's download."""
    _own_cause: Cause | None = None
    """Why the engine ends, if no death is to blame."""
    _fallen: list[Unit] = field(default_factory=list)
    """Those whose death was not made good, in the order of their deaths."""
    _all_killed: bool = False
    _a_member_left: bool = False
    """That is why it drains: SIGTERM then says nothing new."""
    _lowest: int | None = None
    """Context length (tokens) that an API server ever accepted; one that comes later must not accept more."""

    def __post_init__(self) -> None:
        self._deadline = self.now + self.startup_timeout_seconds

    # What happened

    def begin(self) -> list[Action]:
        """Nothing has happened yet."""
        return [] if self.monitor else [FetchModel()]

    def monitor_stored(self) -> list[Action]:
        """The row with this pod's UID is in the API. Said again after each restart of the monitor."""
        if self._stored or self.phase is not Phase.STARTING:
            return []
        self._stored = True
        return [FetchModel()]

    def model_found(self) -> list[Action]:
        """The model is on this machine."""
        if self.phase is not Phase.STARTING:
            return []
        return [Start(tuple(process for unit in self.units for process in unit.processes))]

    def refused(self, cause: Cause) -> list[Action]:
        """The engine cannot start, for a reason that is no death of its processes. Of no interest when it ends already."""
        if self.phase is not Phase.STARTING:
            return []
        self._own_cause = cause
        return self._stop(seconds=0.0)

    def started(self, process: Process, *, pid: int) -> list[Action]:
        """The process runs."""
        if process.role == MODEL_FETCH:
            self._fetch = Unit(processes=(process,))
        unit = self._unit_of(process)
        unit.seen[process] = Seen(pid=pid)
        # A signal can come between two starts.
        return [] if self.phase in (Phase.STARTING, Phase.SERVING) and not unit.over else unit.kill()

    def not_started(self, process: Process, *, reason: str) -> list[Action]:
        """The kernel refused to start it."""
        unit = self._unit_of(process)
        actions = self._fall(unit, culprit=None)
        death = Cause(termination.EXCEPTION, f"{process} cannot be started: {reason}", process=process)
        unit.died(death)
        actions.append(Report(process, publications.exited(death, process, planned=False)))
        return self._tell() + actions + self._go_on(unit)

    def may_register(self, process: Process, *, pid: int) -> str:
        """Why ``process`` may not register; empty = it may."""
        seen = next((unit.seen[process] for unit in self.units if process in unit.seen), None)
        # One that is reaped has no use for it, although what it sent before may be read only now.
        if seen is None or seen.exited:
            return f"this launcher has not started {process} (incarnation {process.incarnation}), or it is over"
        if seen.registered:
            return f"{process} (incarnation {process.incarnation}) is registered already, with pid {seen.pid}"
        if seen.pid != pid:
            return f"{process} has pid {seen.pid}, the message came from pid {pid}"
        return ""

    def registered(self, process: Process) -> list[Action]:
        """The process handed its pipe over."""
        self._unit_of(process).seen[process].registered = True
        return self._tell()

    def said(self, process: Process, message: messages.FromProcess) -> list[Action]:
        """A message of a registered process."""
        unit = self._unit_of(process)
        seen = unit.seen[process]
        match message:
            case messages.Stage(stage=stage):
                seen.stage = stage
            case messages.Failed():
                seen.failed = message
                unit.first_failed = unit.first_failed or process
            case messages.Bound(endpoint=endpoint):
                seen.endpoint = endpoint
            case messages.Published(record=record):
                seen.record = record
            case messages.Ready(max_context_length=length, ranks=fits):
                seen.ready = message
                for rank in self._ranks():
                    for fit in fits:
                        if fit.rank == rank.processes[0].rank:
                            rank.fits(fit)
                self._lowest = min(length, self._lowest or length)
                self._check_ready()
            case messages.Drained():
                seen.drained = True
            case messages.Register():
                pass  # A second registration on the same connection says nothing new.
        return self._tell() + self._check_drained()

    def pipe_closed(self, process: Process, *, bye: bool) -> list[Action]:
        """The process is dying: its exit follows, after the kernel has released its memory."""
        unit = self._unit_of(process)
        seen = unit.seen[process]
        if seen.exited or seen.killed or (bye and seen.asked_to_stop):
            return []
        actions = self._fall(unit, culprit=process)
        return self._tell() + actions

    def was_dying(self, process: Process) -> None:
        """It was killed, but the kernel says that its end had begun before: then that is no planned one."""
        self._unit_of(process).seen[process].killed = False

    def was_killed(self, process: Process) -> bool:
        """By the launcher itself, which also kills with SIGKILL."""
        return self._unit_of(process).seen[process].killed

    def exited(self, process: Process, *, exit: Exit, out_of_memory: bool) -> list[Action]:
        """The process is gone and reaped."""
        unit = self._unit_of(process)
        death, planned = unit.death_of(process, exit=exit, out_of_memory=out_of_memory)
        if unit is self._fetch:
            return self._go_on(unit)  # What it found, or why not, is told by ``model_found`` or ``refused``.
        actions: list[Action] = [Report(process, publications.exited(death, process, planned=planned))]
        if not planned:
            actions += self._fall(unit, culprit=process)
            unit.died(death)
        elif process.role == ENGINE_CORE and self.phase is Phase.STOPPING:
            actions += ask_to_stop(unit, workers=True)
        return self._tell() + actions + self._go_on(unit)

    def asked_to_stop(self, *, timeout_seconds: float | None = None) -> list[Action]:
        """SIGTERM, SIGINT or the monitor's ``drain``. A second time, or with timeout 0, the requests under way are cut."""
        if self._a_member_left and timeout_seconds != 0:
            self._a_member_left = False
            return []
        if self.phase is Phase.SERVING and timeout_seconds != 0:
            return self._drain(timeout_seconds)
        if self.phase in (Phase.SERVING, Phase.DRAINING):
            return self._stop(seconds=STOP_SECONDS)
        if self.phase is Phase.STARTING:
            return self._stop(seconds=0.0)
        return self._kill_all()

    def member_leaves(self) -> list[Action]:
        """Another member's pod was asked to stop: the replica ends as one."""
        if self.phase not in (Phase.STARTING, Phase.SERVING):
            return []
        actions = self.asked_to_stop()
        self._a_member_left = True
        return actions

    def asked_to_end_ranks(self, ranks: tuple[int, ...]) -> list[Action]:
        """The monitor's ``abort``: these ranks are of no use any more. No death, and no restart."""
        chosen = [unit for unit in self._ranks() if unit.processes[0].rank in ranks and unit.state is not UnitState.DEAD]
        if not chosen or self.phase in (Phase.STOPPING, Phase.ENDED):
            return []
        if self.phase is Phase.STARTING or not any(unit.lives for unit in self._ranks() if unit not in chosen):
            return self._stop(seconds=0.0 if self.phase is Phase.STARTING else STOP_SECONDS)
        actions = [action for unit in chosen for action in unit.end()]
        return self._tell() + actions

    def clock(self, now: float) -> list[Action]:
        """Called at every wake-up before what has happened is told."""
        self.now = now
        actions: list[Action] = []
        for unit in self.units:
            if self.phase is Phase.SERVING and now >= unit.deadline:
                actions += unit.time_out(self._timeout(readiness.awaited([unit], self.units))) + self._end_without_living()
        if now >= self._deadline:
            actions += self._missed()
        return self._tell() + actions if actions else []

    # What others want to know

    @property
    def cause(self) -> Cause | None:
        """Why the engine ends, or would have to if it ended now; None = nothing is wrong."""
        return self._own_cause or next((unit.cause for unit in self._fallen if unit.cause is not None), None)

    @property
    def deadline(self) -> float:
        """When :meth:`clock` is due."""
        # Restarts are over with the engine's own end, which has a deadline of its own.
        return min(self._deadline, *(unit.deadline for unit in self.units)) if self.phase is Phase.SERVING else self._deadline

    def state(self) -> dict[str, Any]:
        """The ``state`` message for the monitor: whole, the same while nothing changed."""
        ranks = [(rank, rank_word(self.phase, rank.state, ends_badly=self._ends_badly)) for rank in self._ranks()]
        return publications.state(member_word(self.phase, ends_badly=self._ends_badly), ranks)

    def max_context_length(self) -> int:
        """What every API server accepts (tokens). Only while serving."""
        return readiness.max_context_length(self.units)

    # Decisions

    @property
    def _ends_badly(self) -> bool:
        return self.phase in (Phase.STOPPING, Phase.ENDED) and bool(self._own_cause or self._fallen)

    def _tell(self) -> list[Action]:
        """Everything that somebody should know and was not told yet."""
        all_bound = all(any(seen.endpoint for seen in server.seen.values()) for server in self._servers())
        with_addresses = all_bound if self.phase is Phase.STARTING else self.phase in (Phase.SERVING, Phase.DRAINING)
        ranks = publications.ranks(self.state(), max_context_length=self._lowest)
        return publications.untold(self.units, replica_uid=self.replica_uid, ranks=ranks, with_addresses=with_addresses)

    def _check_ready(self) -> None:
        if self.phase is Phase.STARTING and not readiness.missing(self.units):
            self.phase = Phase.SERVING
            self._deadline = math.inf
            for unit in self.units:
                unit.serves()
        elif self.phase is Phase.SERVING:
            for unit in self.units:
                if unit.state is UnitState.RESTARTING and not unit.over and readiness.is_ready(unit, self.units):
                    unit.serves()
                    self._fallen.remove(unit)

    def _fall(self, unit: Unit, *, culprit: Process | None) -> list[Action]:
        """A death in ``unit`` has begun: the rest of it goes down at once, and the engine if it cannot do without."""
        if unit.over:
            return []
        if unit not in self._fallen:
            self._fallen.append(unit)
        restart_until = self.now + self.startup_timeout_seconds if self.phase is Phase.SERVING else None
        actions = unit.fall(culprit, now=self.now, restart_until=restart_until)
        # A rank may have waited for nobody but this API server.
        self._check_ready()
        return actions + self._end_without_living()

    def _end_without_living(self) -> list[Action]:
        """The engine ends when it has no rank, or no API server, that lives; while it starts it needs them all."""
        if self.phase is Phase.STARTING:
            return self._stop(seconds=0.0)
        is_whole = any(unit.lives for unit in self._ranks()) and any(unit.lives for unit in self._servers())
        if is_whole or self.phase in (Phase.STOPPING, Phase.ENDED):
            return []
        return self._stop(seconds=STOP_AFTER_DEATH_SECONDS)

    def _go_on(self, unit: Unit) -> list[Action]:
        """A process of ``unit`` is reaped, or was never there."""
        if self.phase is Phase.SERVING and unit.over and unit.state is UnitState.RESTARTING and unit.is_reaped:
            return [Start(unit.begin_next())]
        return self._check_drained() + self._check_ended()

    def _drain(self, timeout_seconds: float | None) -> list[Action]:
        settle = SETTLE_SECONDS if self.monitor else 0.0
        timeout = self.drain_timeout_seconds + settle if timeout_seconds is None else timeout_seconds
        self.phase = Phase.DRAINING
        self._deadline = self.now + timeout + DRAIN_MARGIN_SECONDS
        message = {"type": "drain", "timeoutSeconds": timeout, "settleSeconds": settle}
        actions: list[Action] = []
        for unit in self.units:
            if unit.state is UnitState.RESTARTING:
                actions += unit.end()
            elif unit.is_api_server:
                actions += [Send(process, message) for process, seen in unit.seen.items() if seen.listens]
        return self._tell() + actions + self._end_without_living()

    def _check_drained(self) -> list[Action]:
        serving = [seen for server in self._servers() if server.state is UnitState.SERVING for seen in server.seen.values()]
        return self._stop(seconds=STOP_SECONDS) if self.phase is Phase.DRAINING and all(seen.drained for seen in serving) else []

    def _stop(self, *, seconds: float) -> list[Action]:
        """Ask, and kill after ``seconds``. 0 is for processes that import or load: they have nothing to lose and do not listen."""
        self.phase = Phase.STOPPING
        self._deadline = self.now + seconds
        actions: list[Action] = []
        for unit in self._everything():
            if not seconds or unit.state is not UnitState.SERVING:
                actions += unit.kill()
            else:
                # Workers without their core here are asked with it elsewhere, or are the only ones there are.
                actions += ask_to_stop(unit, workers=unit.processes[0].role == WORKER)
        return self._tell() + actions + self._check_ended()

    def _check_ended(self) -> list[Action]:
        if self.phase is Phase.STOPPING and all(unit.is_reaped for unit in self._everything()):
            self.phase = Phase.ENDED
            self._deadline = math.inf
        return []

    def _missed(self) -> list[Action]:
        """The engine's own deadline is over."""
        match self.phase:
            case Phase.STARTING:
                self._own_cause = self._timeout(self._awaited())
                return self._stop(seconds=0.0)
            case Phase.DRAINING:
                return self._stop(seconds=STOP_SECONDS)
            case Phase.STOPPING if not self._all_killed:
                return self._kill_all()
            case _:
                left = [f"{process} (pid {unit.seen[process].pid})" for unit in self._everything() for process in unit.alive()]
                text = f"{REAP_SECONDS:g} s after SIGKILL the kernel has not let go of {', '.join(left)}"
                self._own_cause = self.cause or Cause(termination.EXCEPTION, text)
                self.phase = Phase.ENDED
                self._deadline = math.inf
                return []

    def _kill_all(self) -> list[Action]:
        if self.phase is Phase.STOPPING and not self._all_killed:
            self._all_killed = True
            self._deadline = self.now + REAP_SECONDS
        return [action for unit in self._everything() for action in unit.kill()]

    def _everything(self) -> list[Unit]:
        return [*self.units, *([self._fetch] if self._fetch else [])]

    def _servers(self) -> list[Unit]:
        return [unit for unit in self.units if unit.is_api_server]

    def _ranks(self) -> list[Unit]:
        return [unit for unit in self.units if not unit.is_api_server]

    def _unit_of(self, process: Process) -> Unit:
        return next(unit for unit in self._everything() if process in unit.processes)

    def _timeout(self, awaited: list[str]) -> Cause:
        text = f"not ready after {self.startup_timeout_seconds:g} s, waiting for: {'; '.join(awaited)}"
        return Cause(kind=termination.STARTUP_TIMEOUT, message=text)

    def _awaited(self) -> list[str]:
        if self.monitor and not self._stored:
            return [f"the monitor at {self.monitor} to store this pod's row"]
        if not any(unit.seen for unit in self.units):
            return ["the model's download"]
        return readiness.awaited(readiness.missing(self.units), self.units)


def ask_to_stop(unit: Unit, *, workers: bool) -> list[Action]:
    """Its workers, or all the others: workers go when nobody can ask anything of them any more."""
    chosen = [process for process, seen in unit.seen.items() if seen.listens and (process.role == WORKER) is workers]
    for process in chosen:
        unit.seen[process].asked_to_stop = True
    return [Send(process, {"type": "stop"}) for process in chosen]
