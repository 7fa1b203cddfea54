"""Which actors shall exist, for the actor manager: made from the life of the engine. Pure.

Invariant: the same while nothing changed. An incarnation of a rank is wanted until the last of its processes is gone: their
launchers kill, and may ask for stacks before; what the manager then removes is the room they had, and whoever never registered.
"""

from __future__ import annotations

from typing import Literal

from enginehouse_engine.launcher import ray_unit
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.process import WORKER
from enginehouse_engine.launcher.unit import Unit
from enginehouse_engine.launcher.units import ranks_of
from enginehouse_engine.ray.manager_messages import Actors, WantedRank


def actors(life: Lifecycle, *, engine: str, strategy: Literal["Pack", "Spread"], resource: str) -> Actors | None:
    """None before there is a Ray that they could be in."""
    if life.ray is None or not ray_unit.is_up(life.ray):
        return None
    ranks = tuple(_rank(unit) for unit in ranks_of(life.units) if not (unit.over and unit.is_reaped))
    return Actors(engine=engine, strategy=strategy, resource=resource, ranks=ranks)


def _rank(unit: Unit) -> WantedRank:
    members = tuple(process.member for process in unit.processes if process.role == WORKER)
    return WantedRank(rank=unit.processes[0].rank or 0, incarnation=unit.incarnation, members=members)
