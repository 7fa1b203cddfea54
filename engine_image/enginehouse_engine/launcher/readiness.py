"""Who is ready, and who is waited for, by name. Pure.

Invariant: a rank is ready when every API server that is ready knows its present incarnation, so that no request of any client finds
only some of them. Does not decide what follows: ``lifecycle.py`` does.
"""

from __future__ import annotations

from collections.abc import Iterable

from enginehouse_engine.launcher import messages
from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.unit import Unit, UnitState


def is_ready(unit: Unit, units: Iterable[Unit]) -> bool:
    """An API server that says so; a rank that all API servers that say so know."""
    if unit.is_api_server:
        return _answer(unit) is not None
    ready = [other for other in units if other.is_api_server and _answer(other) is not None]
    return bool(ready) and all(_knows(server, unit) for server in ready)


def missing(units: Iterable[Unit]) -> list[Unit]:
    """Who is not ready; while an API server is not, it may be waiting for any rank that it does not know.

    A rank without a place is not waited for as long as another one has one; nor is one that leaves.
    """
    units = [unit for unit in units if not unit.leaves]
    placed = [unit for unit in units if unit.state is not UnitState.PENDING]
    waited_for = placed if any(not unit.is_api_server for unit in placed) else units
    return [unit for unit in waited_for if not is_ready(unit, units)]


def awaited(waiting: Iterable[Unit], units: Iterable[Unit]) -> list[str]:
    """The processes of those that are not ready, how far each has come; for a core that has said hello, who has not met it."""
    servers = [unit for unit in units if unit.is_api_server]
    names = []
    for unit in waiting:
        names += [f"{process} ({_progress(unit, process)})" for process in unit.processes]
        core = unit.seen.get(unit.processes[0])
        if not unit.is_api_server and core is not None and core.stage == "handshake":
            names += [f"{server.processes[0]} to meet it" for server in servers if not _knows(server, unit)]
    return names


def _knows(server: Unit, rank: Unit) -> bool:
    """One that is not ready is waited for itself."""
    answer = _answer(server)
    return answer is None or (rank.processes[0].rank, rank.incarnation) in {(fit.rank, fit.incarnation) for fit in answer.ranks}


def _answer(server: Unit) -> messages.Ready | None:
    return None if server.over else next((seen.ready for seen in server.seen.values() if seen.ready), None)


def _progress(unit: Unit, process: Process) -> str:
    seen = unit.seen.get(process)
    if seen is None:
        return "no place for it yet" if unit.state is UnitState.PENDING else "not started"
    if seen.exited:
        return f"pid {seen.pid}, gone"
    if seen.killed:
        return f"pid {seen.pid}, killed and not gone"
    if not seen.registered:
        return f"pid {seen.pid}, not registered"
    return f"pid {seen.pid}, stage {seen.stage or 'registered'}"
