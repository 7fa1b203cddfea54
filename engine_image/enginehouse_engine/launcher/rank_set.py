"""Which ranks an engine shall have while others serve: who is made, who leaves, and what is remembered of those that left. Pure.

A rank that is to leave serves until its requests have ended (``Draining``), then stops and is forgotten when nothing of it is left.
That is never taken back: wanted again, it begins anew afterwards, with the next incarnation.

Invariants: highest ranks leave; nothing that lives leaves before a rank that stays serves; an incarnation is never used again, and
what a rank that left had lowered stays low. Does not know phases, and does nothing (``lifecycle.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from enginehouse_engine.launcher.unit import Unit, UnitState
from enginehouse_engine.launcher.units import api_servers_of, rank_unit, ranks_of


@dataclass
class RankSet:
    """``workers`` are each rank's own, ``workers_each`` are in one member."""

    wanted: int
    workers: int = 0
    workers_each: int = 0
    needs_places: bool = False
    """A rank starts when somebody has found a place for it; until then it is pending."""
    held: frozenset[tuple[int, int]] = frozenset()
    """Ranks and incarnations that have a place, or are about to get one, or have not given theirs back."""
    lowest: int | None = None
    """Context length (tokens) of those that left: API servers accept no more since."""
    _left: dict[int, int] = field(default_factory=dict)
    """The last incarnation of each rank that left."""

    def missing(self, units: Iterable[Unit]) -> list[Unit]:
        """New ones, for ranks that are wanted and not there."""
        there = {unit.rank for unit in ranks_of(units)}
        state = UnitState.PENDING if self.needs_places else UnitState.STARTING
        new = [rank for rank in range(self.wanted) if rank not in there]
        return [self.make(rank, incarnation=self._left.get(rank, 0) + 1, state=state) for rank in new]

    def to_leave(self, units: Iterable[Unit], *, may_wait: bool) -> list[Unit]:
        """Who begins to leave now, highest first. ``may_wait``: while the engine serves."""
        ranks = ranks_of(units)
        can_go = not may_wait or any(unit.state is UnitState.SERVING for unit in ranks if unit.rank < self.wanted)
        surplus = [unit for unit in reversed(ranks) if unit.rank >= self.wanted and not unit.leaves]
        return [unit for unit in surplus if can_go or not unit.lives]

    def is_gone(self, unit: Unit) -> bool:
        """Nothing of its present incarnation is left, neither processes nor a place."""
        return unit.is_reaped and (unit.rank, unit.incarnation) not in self.held

    def forget(self, unit: Unit) -> None:
        """It has left."""
        self._left[unit.rank] = unit.incarnation
        if unit.fit is not None:
            self.lowest = min(unit.fit.max_context_length, self.lowest or unit.fit.max_context_length)

    def make(self, rank: int, *, incarnation: int, state: UnitState = UnitState.STARTING) -> Unit:
        """One more."""
        return rank_unit(rank, incarnation=incarnation, workers=self.workers, workers_each=self.workers_each, state=state)


def has_drained(rank: Unit, units: Iterable[Unit]) -> bool:
    """No API server that can be told anything has a request at it."""
    identity = (rank.rank, rank.incarnation)
    return all(identity in seen.drained_ranks for unit in api_servers_of(units) for seen in unit.seen.values() if seen.listens)
