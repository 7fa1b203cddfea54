"""How ranks join an engine that serves, and leave it. Pure; the clock is passed in.

Level-triggered: :meth:`Resizing._fit_ranks` compares the ranks that there are with those that are wanted, whenever something has
happened that may have been waited for, and comes nearer.

Invariants: a rank that comes ends nothing and is waited for by nobody who serves; one that leaves has no requests any more, or its
time is over, and API servers know it before its core is asked to stop; after a request to stop nothing changes here.
Whom to take is decided by ``rank_set.py``; deaths are ``lifecycle.py``'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse_engine.launcher import publications, readiness, termination
from enginehouse_engine.launcher.actions import Action, Report, Start
from enginehouse_engine.launcher.engine_state import EngineState
from enginehouse_engine.launcher.phase import REAP_SECONDS, STOP_SECONDS, Phase
from enginehouse_engine.launcher.rank_set import has_drained
from enginehouse_engine.launcher.termination import Cause
from enginehouse_engine.launcher.unit import Unit, UnitState
from enginehouse_engine.launcher.units import in_order, ranks_of


@dataclass
class Resizing(EngineState):
    """The part of an engine's life in which it serves and its shape changes."""

    def resized(self, wanted: int) -> list[Action]:
        """The monitor's ``resize``: so many ranks there shall be. Of no interest when the engine ends."""
        self.ranks.wanted = wanted
        actions = self._fit_ranks()
        return self._tell() + actions

    def placed(self, places: Mapping[tuple[int, int], bool]) -> list[Action]:
        """Ranks and incarnations that have a place (True), wait for one (False), or have not given theirs back.

        Whoever was started and is not in ``places`` has none any more: who tells this adds those of which he has not heard yet.
        """
        self.ranks.held = frozenset(places)
        actions: list[Action] = []
        for unit in ranks_of(self.units):
            if unit.state is UnitState.PENDING and places.get((unit.rank, unit.incarnation)):
                self._has_place(unit)
            actions += self._begin_next(unit)
        actions += self._fit_ranks()
        return self._tell() + actions

    # Decisions

    def _check_ready(self) -> None:
        if self.phase is Phase.STARTING and not readiness.missing(self.units):
            self.phase = Phase.SERVING
            self._deadline = math.inf
            for unit in self.units:
                if unit.state is UnitState.STARTING:
                    unit.serves()
        elif self.phase is Phase.SERVING:
            for unit in self.units:
                comes = unit.state in (UnitState.STARTING, UnitState.RESTARTING) and not unit.over
                if comes and readiness.is_ready(unit, self.units):
                    unit.serves()
                    self._fallen = [other for other in self._fallen if other is not unit]

    def _fit_ranks(self) -> list[Action]:
        """Nearer to the ranks that are wanted: whenever something has happened that may have been waited for."""
        if self.phase not in (Phase.STARTING, Phase.SERVING):
            return []
        actions: list[Action] = []
        for unit in self.ranks.to_leave(self.units, may_wait=self.phase is Phase.SERVING):
            actions += unit.leave(drained_by=self.now + self.drain_timeout_seconds, gone_by=self.now + REAP_SECONDS)
        for unit in (unit for unit in ranks_of(self.units) if unit.leaves):
            if not unit.over and has_drained(unit, self.units):
                actions += unit.retire(gone_by=self.now + STOP_SECONDS)
            if unit.over and self.ranks.is_gone(unit):
                self.ranks.forget(unit)
                self.units = tuple(other for other in self.units if other is not unit)
                self._fallen = [other for other in self._fallen if other is not unit]
        added = self.ranks.missing(self.units)
        for unit in added:
            if unit.state is UnitState.STARTING:
                self._has_place(unit)
        self.units = in_order((*self.units, *added))
        if added and self._begun:
            actions.append(Start(tuple(process for unit in added for process in unit.processes)))
        self._check_ready()
        return actions

    def _leaves_late(self, unit: Unit) -> list[Action]:
        """It had time to drain, then to stop; killed it cannot but go, unless the kernel or Ray holds it: that is told."""
        if not unit.over:
            return unit.retire(gone_by=self.now + STOP_SECONDS)
        if not unit.cut:
            unit.cut, unit.deadline = True, self.now + REAP_SECONDS
            return unit.kill()
        unit.state, unit.deadline = UnitState.DEAD, math.inf
        left = [f"{process} (pid {unit.seen[process].pid})" for process in unit.alive()]
        why = f"the kernel has not let go of {', '.join(left)}" if left else "Ray has not taken its place back"
        text = f"rank {unit.rank} has not left {REAP_SECONDS:g} s after SIGKILL to whoever was left of it: {why}"
        first = next(iter(unit.alive()), unit.processes[0])
        return [Report(first, publications.exited(Cause(termination.EXCEPTION, text, process=first), first, planned=False))]

    def _has_place(self, unit: Unit) -> None:
        """It may start; until the engine serves, the time for that is the engine's own."""
        unit.is_placed(deadline=self.now + self.startup_timeout_seconds if self.phase is Phase.SERVING else math.inf)

    def _begin_next(self, unit: Unit) -> list[Action]:
        restarts = self.phase is Phase.SERVING and unit.over and unit.state is UnitState.RESTARTING
        return [Start(unit.begin_next())] if restarts and self.ranks.is_gone(unit) else []
