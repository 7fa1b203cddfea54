"""All units of one engine: made from its shape, and looked through. Pure.

Invariant: API servers come first, then ranks by their number; a process belongs to one unit, whatever its incarnation. Does not
know how a unit lives (``unit.py``) nor what the engine makes of it (``lifecycle.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from enginehouse_engine.config import MembersConfig
from enginehouse_engine.launcher.process import API_SERVER, ENGINE_CORE, WORKER, Process
from enginehouse_engine.launcher.unit import Unit, UnitState


def engine_units(*, api_servers: int, ranks: int, workers: int, workers_each: int = 0) -> tuple[Unit, ...]:
    """All that one engine consists of; ``workers`` are each rank's own, ``workers_each`` are in one member."""
    front = [(Process(role=API_SERVER, rank=None, index=index, incarnation=1),) for index in range(api_servers)]
    rest = [_rank(rank, workers=workers, workers_each=workers_each) for rank in range(ranks)]
    return tuple(Unit(processes=processes) for processes in (*front, *rest))


def member_units(*, member: int, ranks: int, workers: int, workers_each: int) -> tuple[Unit, ...]:
    """What lives in a member that is not the leader: parts of ranks."""
    parts = [_rank(rank, workers=workers, workers_each=workers_each) for rank in range(ranks)]
    mine = [tuple(process for process in part if process.member == member) for part in parts]
    return tuple(Unit(processes=processes) for processes in mine if processes)


def rank_unit(rank: int, *, incarnation: int, workers: int, workers_each: int, state: UnitState) -> Unit:
    """One more rank of an engine that runs."""
    processes = _rank(rank, workers=workers, workers_each=workers_each)
    return Unit(tuple(dataclasses.replace(process, incarnation=incarnation) for process in processes), state=state)


def in_order(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """API servers, then ranks by their number."""
    units = list(units)
    return (*api_servers_of(units), *sorted(ranks_of(units), key=lambda unit: unit.rank))


def api_servers_of(units: Iterable[Unit]) -> list[Unit]:
    return [unit for unit in units if unit.is_api_server]


def ranks_of(units: Iterable[Unit]) -> list[Unit]:
    return [unit for unit in units if not unit.is_api_server]


def unit_of(process: Process, units: Iterable[Unit]) -> Unit:
    """The one that it belongs to now."""
    return next(unit for unit in units if process in unit.processes)


def reason_to_refuse(process: Process, units: Iterable[Unit], *, pid: int) -> str:
    """Why ``process``, which the kernel knows as ``pid``, may not register; empty = it may."""
    seen = next((unit.seen[process] for unit in units if process in unit.seen), None)
    # One that is reaped has no use for it, although what it sent before may be read only now.
    if seen is None or seen.exited:
        return f"this launcher has not started {process} (incarnation {process.incarnation}), or it is over"
    if seen.registered:
        return f"{process} (incarnation {process.incarnation}) is registered already, with pid {seen.pid}"
    if seen.pid != pid:
        return f"{process} has pid {seen.pid}, the message came from pid {pid}"
    return ""


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
