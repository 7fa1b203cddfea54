"""The life of one engine: what was seen of its processes, and what the launcher does about it. Pure; the clock is passed in.

Starting -> Serving -> Draining -> Stopping -> Ended, above its units (``unit.py``): API servers and ranks. Every method tells what
happened and returns what to do, in order.

Invariants: an exit that nobody asked for is a death, whatever its code; while the engine serves, a death is its unit's affair and
ends the engine only when no rank, or no API server, is left; the engine's cause is the first death that was not made good; after a
request to stop nothing is started; every phase but Serving has a deadline, and a missed one names who was missing.
Does no I/O: ``launch.py`` does what is returned here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse_engine.launcher import messages, publications, ray_unit, readiness, termination
from enginehouse_engine.launcher.actions import Action, FetchModel, Report, Send, Start, StartRay
from enginehouse_engine.launcher.phase import (
    DRAIN_MARGIN_SECONDS,
    REAP_SECONDS,
    SETTLE_SECONDS,
    STOP_AFTER_DEATH_SECONDS,
    STOP_SECONDS,
    Phase,
)
from enginehouse_engine.launcher.process import ENGINE_CORE, ERRANDS, WORKER, Process
from enginehouse_engine.launcher.resize import Resizing
from enginehouse_engine.launcher.termination import Cause, Exit
from enginehouse_engine.launcher.unit import Seen, Unit, UnitState
from enginehouse_engine.launcher.units import api_servers_of, ranks_of


@dataclass
class Lifecycle(Resizing):
    """Every method tells what happened; ``now`` is any monotonic clock, in seconds, everywhere the same."""

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
        return self._start_units() if self.ray is None else [StartRay()]

    def ray_runs(self, pids: Mapping[Process, int]) -> list[Action]:
        """Ray's own processes in this pod have started, which are in ``pids``."""
        actions = [action for process, pid in pids.items() for action in self.started(process, pid=pid)]
        if self.phase is not Phase.STARTING or self.ray is None:
            return actions
        return actions + (self._start_units() if ray_unit.is_up(self.ray) else [Start((ray_unit.MANAGER,))])

    def refused(self, cause: Cause) -> list[Action]:
        """The engine cannot start, for a reason that is no death of its processes. Of no interest when it ends already."""
        if self.phase is not Phase.STARTING:
            return []
        self._own_cause = cause
        return self._stop(seconds=0.0)

    def started(self, process: Process, *, pid: int) -> list[Action]:
        """The process runs."""
        if process.role in ERRANDS:
            self._errand = Unit(processes=(process,))
        unit = self._unit_of(process)
        unit.seen[process] = Seen(pid=pid)
        if unit.state is UnitState.PENDING:
            self._has_place(unit)
        # A signal can come between two starts.
        return [] if self._wants(unit) else unit.kill()

    def not_started(self, process: Process, *, reason: str) -> list[Action]:
        """The kernel, or Ray, refused to start it; or it was refused here, because nobody wants it any more."""
        unit = self._unit_of(process)
        if not self._wants(unit):
            return []
        actions = self._fall(unit, culprit=None)
        death = Cause(termination.EXCEPTION, f"{process} cannot be started: {reason}", process=process)
        unit.died(death)
        actions.append(Report(process, publications.exited(death, process, planned=False)))
        return self._tell() + actions + self._go_on(unit)

    def registered(self, process: Process) -> list[Action]:
        """The process handed its pipe over."""
        self._unit_of(process).seen[process].registered = True
        return self._tell()

    def said(self, process: Process, message: messages.FromProcess) -> list[Action]:
        """A message of a registered process."""
        unit = self._unit_of(process)
        unit.said(process, message)
        if unit is self.ray and self.phase is Phase.STARTING and message == messages.Stage(ray_unit.REACHABLE):
            return self._start_units()
        if isinstance(message, messages.Pong):
            self._hang.answered(process, message, now=self.now)
        if isinstance(message, messages.Ready):
            for rank in ranks_of(self.units):
                rank.fits(message)
            self._lowest = min(message.max_context_length, self._lowest or message.max_context_length)
            self._check_ready()
        actions = self._fit_ranks()
        return self._tell() + actions + self._check_drained()

    def stopped(self, process: Process, *, number: int) -> None:
        """A signal has stopped it. That is bad only if it lasts; a download that stands still has the start-up's deadline."""
        self._unit_of(process).seen[process].stopped = True
        if process.role not in ERRANDS:
            self._hang.stopped(process, number=number, now=self.now)

    def continued(self, process: Process) -> None:
        """It runs again."""
        self._unit_of(process).seen[process].stopped = False
        self._hang.forget(process)

    def pipe_closed(self, process: Process, *, bye: bool) -> list[Action]:
        """The process is dying: its exit follows, after the kernel has released its memory."""
        unit = self._unit_of(process)
        seen = unit.seen[process]
        if seen.exited or seen.killed or (bye and seen.asked_to_stop):
            return []
        actions = self._fall(unit, culprit=process) + self._fit_ranks()
        return self._tell() + actions

    def was_dying(self, process: Process) -> None:
        """It was killed, but the kernel says that its end had begun before: then that is no planned one.

        But for an actor whose raylet is gone, since that takes it along.
        """
        if self.ray is not None and self.ray.over and process not in self.ray.processes:
            return
        self._unit_of(process).seen[process].killed = False

    def was_killed(self, process: Process) -> bool:
        """By the launcher itself, which also kills with SIGKILL."""
        return self._unit_of(process).seen[process].killed

    def exited(self, process: Process, *, exit: Exit, out_of_memory: bool, evidence: str = "") -> list[Action]:
        """The process is gone and reaped: its memory, devices and ports are free again."""
        unit = self._unit_of(process)
        death, planned = unit.death_of(process, exit=exit, out_of_memory=out_of_memory, evidence=evidence)
        self._hang.forget(process)
        if unit is self._errand:
            return self._go_on(unit)  # What came of it is told by ``model_found`` and ``ray_runs``, or ``refused``.
        actions: list[Action] = [Report(process, publications.exited(death, process, planned=planned))]
        if not planned:
            if unit is self.ray:
                self._dies_of(death)
            actions += self._fall(unit, culprit=process)
            unit.died(death)
            actions += self._end_without_living()
        if process.role == ENGINE_CORE:
            actions += unit.ask_to_stop(workers=True)
        actions += self._go_on(unit)
        return self._tell() + actions

    def asked_to_stop(self) -> list[Action]:
        """SIGTERM or SIGINT. A second time the requests under way are cut."""
        if self._replica_ends:
            self._replica_ends = False
            return []
        self._forget_deaths()
        if self.phase is Phase.SERVING:
            return self._drain()
        if self.phase is Phase.DRAINING:
            return self._stop(seconds=STOP_SECONDS)
        if self.phase is Phase.STARTING:
            return self._stop(seconds=0.0)
        return self._kill_all()

    def replica_ends(self) -> list[Action]:
        """In order: another member's pod was asked to stop, or the replica's object is deleted. Cuts nothing if told again."""
        if self.phase not in (Phase.STARTING, Phase.SERVING):
            return []
        actions = self.asked_to_stop()
        self._replica_ends = True
        return actions

    def asked_to_end_ranks(self, ranks: tuple[int, ...], *, cause: Cause | None = None) -> list[Action]:
        """The monitor's ``abort``: these ranks are of no use any more, and are not restarted. Of ``cause`` they died elsewhere."""
        chosen = [unit for unit in ranks_of(self.units) if unit.processes[0].rank in ranks and unit.state is not UnitState.DEAD]
        if not chosen or self.phase in (Phase.STOPPING, Phase.ENDED):
            return []
        if cause is not None:
            actions = [action for unit in chosen for action in unit.end(asked_first=True)]
            for unit in chosen:
                unit.died(cause)
            self._fallen += [unit for unit in chosen if unit not in self._fallen]
            return self._tell() + actions + self._end_without_living()
        if self.phase is Phase.STARTING or not any(unit.lives for unit in ranks_of(self.units) if unit not in chosen):
            self._forget_deaths()
            return self._stop(seconds=0.0 if self.phase is Phase.STARTING else STOP_SECONDS)
        actions = [action for unit in chosen for action in unit.end()]
        return self._tell() + actions

    def clock(self, now: float) -> list[Action]:
        """Called at every wake-up before what has happened is told."""
        self.now = now
        if now < self.deadline:
            return []
        actions: list[Action] = []
        for unit in self.units:
            if self.phase is Phase.SERVING and now >= unit.deadline:
                actions += self._missed_by(unit)
        if now >= self._deadline:
            actions += self._missed()
        actions += self._fit_ranks()
        return self._tell() + actions

    def look_for_hangs(self) -> list[Action]:
        """Called at every wake-up after what has happened was told: a process may have answered just now."""
        if self.phase in (Phase.STOPPING, Phase.ENDED):
            return []
        serving = [unit for unit in self.units if unit.state is UnitState.SERVING and self.phase is Phase.SERVING]
        look = self._hang.look(self.now, asked=[process for unit in serving for process in unit.answering()])
        actions: list[Action] = [Send(process, {"type": "ping"}) for process in look.ask]
        for process, why in look.hung:
            unit = self._unit_of(process)
            if not unit.over:
                unit.seen[process].verdict = Cause(termination.HANG, f"{process} {why}", process=process)
                fallen = self._fall(unit, culprit=process)
                actions += self._tell() + fallen
        return actions

    # Decisions

    def _dies_of(self, ray: Cause) -> None:
        """Actors do not outlive their raylet, nor placement groups the head: whoever is there dies of that."""
        for rank in ranks_of(self.units):
            for process in rank.alive():
                rank.seen[process].verdict = rank.seen[process].verdict or ray

    def _start_units(self) -> list[Action]:
        self._begun = True
        return [Start(tuple(process for unit in self.units for process in unit.processes))]

    def _fall(self, unit: Unit, *, culprit: Process | None) -> list[Action]:
        """A death in ``unit`` has begun: the rest of it goes down at once, and the engine if it cannot do without."""
        if unit.over:
            return []
        if unit not in self._fallen:
            self._fallen.append(unit)
        restart_until = self.now + self.startup_timeout_seconds if self.phase is Phase.SERVING else None
        actions = unit.fall(culprit, now=self.now, restart_until=restart_until)
        if unit is self.ray:
            actions = [action for rank in ranks_of(self.units) for action in rank.end(asked_first=True)] + actions
        # A rank may have waited for nobody but this API server.
        self._check_ready()
        return actions + self._end_without_living()

    def _forget_deaths(self) -> None:
        """It is asked to end: if it serves, that is no failure, whatever died before while the others went on."""
        if self.phase is Phase.SERVING:
            self._fallen.clear()

    def _end_without_living(self) -> list[Action]:
        """The engine ends when it has no rank, or no API server, that lives; while it starts it needs them all."""
        if self.phase is Phase.STARTING:
            return self._stop(seconds=0.0) if any(unit.over and not unit.leaves for unit in self._everything()) else []
        is_whole = all(any(unit.lives for unit in kind) for kind in (ranks_of(self.units), api_servers_of(self.units)))
        if self.ray is not None and self.ray.over:
            is_whole = False
        if is_whole or self.phase in (Phase.STOPPING, Phase.ENDED):
            return []
        return self._stop(seconds=STOP_AFTER_DEATH_SECONDS)

    def _go_on(self, unit: Unit) -> list[Action]:
        """A process of ``unit`` is reaped, or was never there."""
        return self._begin_next(unit) or (self._fit_ranks() + self._check_drained() + self._check_ended())

    def _drain(self) -> list[Action]:
        settle = SETTLE_SECONDS if self.monitor else 0.0
        timeout = self.drain_timeout_seconds + settle
        self.phase = Phase.DRAINING
        self._deadline = self.now + timeout + DRAIN_MARGIN_SECONDS
        message = {"type": "drain", "timeoutSeconds": timeout, "settleSeconds": settle}
        actions: list[Action] = []
        for unit in self.units:
            if unit.state in (UnitState.RESTARTING, UnitState.STARTING, UnitState.PENDING):
                actions += unit.end()
            elif unit.is_api_server:
                actions += [Send(process, message) for process, seen in unit.seen.items() if seen.listens]
        return self._tell() + actions + self._end_without_living()

    def _check_drained(self) -> list[Action]:
        servers = [server for server in api_servers_of(self.units) if server.state is UnitState.SERVING]
        serving = [seen for server in servers for seen in server.seen.values()]
        return self._stop(seconds=STOP_SECONDS) if self.phase is Phase.DRAINING and all(seen.drained for seen in serving) else []

    def _stop(self, *, seconds: float) -> list[Action]:
        """Ask, and kill after ``seconds``. 0 is for processes that import or load: they have nothing to lose and do not listen."""
        self.phase = Phase.STOPPING
        self._deadline = self.now + seconds
        actions: list[Action] = []
        for unit in self._everything():
            if unit is self.ray:
                continue  # Its actors end in order while it is there.
            if not seconds or unit.state not in (UnitState.SERVING, UnitState.DRAINING):
                actions += unit.kill(asked_first=self._ends_badly)
            else:
                # Workers without their core here are asked with it elsewhere, or are the only ones there are.
                actions += unit.ask_to_stop(workers=unit.processes[0].role == WORKER)
        return self._tell() + actions + self._check_ended()

    def _check_ended(self) -> list[Action]:
        if self.phase is Phase.STOPPING and all(unit.is_reaped for unit in self._everything() if unit is not self.ray):
            if self.ray is not None and not self.ray.is_reaped:
                return ray_unit.end(self.ray)
            self.phase = Phase.ENDED
            self._deadline = math.inf
        return []

    def _missed_by(self, unit: Unit) -> list[Action]:
        """The deadline of one unit, while the engine serves."""
        if unit.leaves:
            return self._leaves_late(unit)
        if unit not in self._fallen:
            self._fallen.append(unit)
        verdict = termination.timed_out(self.startup_timeout_seconds, readiness.awaited([unit], self.units))
        actions: list[Action] = []
        if not unit.alive():
            # Nobody's exit will tell it.
            first = unit.processes[0]
            actions.append(Report(first, publications.exited(dataclasses.replace(verdict, process=first), first, planned=False)))
        return actions + unit.time_out(verdict) + self._end_without_living()

    def _missed(self) -> list[Action]:
        """The engine's own deadline is over."""
        match self.phase:
            case Phase.STARTING:
                self._own_cause = termination.timed_out(self.startup_timeout_seconds, self._awaited())
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
        return [action for unit in self._everything() for action in unit.kill(asked_first=self._ends_badly)]
