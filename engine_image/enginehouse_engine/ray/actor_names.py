"""What actors and placement groups are called, so that everybody who looks at a Ray cluster knows whose they are. Pure.

Invariant: an incarnation is in every name, so that nothing old is ever found in place of something new.
"""

from __future__ import annotations

from enginehouse_engine.launcher.process import ENGINE_CORE, Process


def group_name(engine: str, *, rank: int, incarnation: int) -> str:
    """Of a rank's placement group; its actors' names begin with it."""
    return f"{engine}-r{rank}-i{incarnation}"


def actor_name(engine: str, process: Process, *, tensor: int) -> str:
    """Of an engine core or a worker; ``tensor`` is how many workers share a pipeline stage."""
    group = group_name(engine, rank=process.rank or 0, incarnation=process.incarnation)
    if process.role == ENGINE_CORE:
        return f"{group}-core"
    return f"{group}-tp{process.index % tensor}-pp{process.index // tensor}"
