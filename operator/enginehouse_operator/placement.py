"""What Ray has placed of the ranks of replicas, and what is lacking, put together from the leaders' rows.

Invariant: pure; the same rows give the same words, in the order of replicas, ranks and bundles. Of a rank that is dead, or is to
go, nothing is lacking. Does not decide which condition says it (``status.py``, ``problems.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from . import reasons
from .conditions import Condition
from .pod_state import Problem
from .ranks import DEAD, Placement
from .seen import Replica

PLACED: Final = "Placed"
"""State of a placement group: all its bundles have a place."""
LACKING: Final = "Lacking"
"""Of one: the members have joined, and have no room for it."""
MOST_TOLD: Final = 4
"""Bundles in one message."""


def placement_problem(replica: Replica) -> Problem | None:
    """The shortage of one replica, bundle by bundle. A member that is on its way is none; one whose pod cannot run is."""
    told = _told(group for group in _waiting(replica) if group.state == LACKING or _waits_in_vain(replica, group))
    return Problem(reason=reasons.PLACEMENT_LACKING, message=f"{replica.name}: {told}") if told else None


def placement_condition(replicas: Iterable[Replica]) -> Condition:
    """``PlacementReady`` of an engine. Unknown: not all ranks have been told of."""
    live = list(replicas)
    lacking = [problem for replica in live if (problem := placement_problem(replica)) is not None]
    if lacking:
        words = "; ".join(problem.message for problem in lacking)
        return Condition(type="PlacementReady", is_true=False, reason=reasons.PLACEMENT_LACKING, message=words)
    if not live or not all(_is_known(replica) for replica in live):
        return Condition(type="PlacementReady", is_true=None, reason=reasons.NOT_KNOWN)
    waiting = [f"{replica.name}: {_told(groups) or 'Ray is about to'}" for replica in live if (groups := _waiting(replica))]
    if waiting:
        return Condition(type="PlacementReady", is_true=False, reason=reasons.PLACEMENT_PENDING, message="; ".join(waiting))
    count = sum(len(_wanted(replica)) for replica in live)
    return Condition(type="PlacementReady", is_true=True, reason=reasons.PLACED, message=f"ranks: {count}")


def _told(groups: Iterable[Placement]) -> str:
    told = [
        f"bundle {bundle.index} of rank {group.rank} {bundle.lacking}"
        for group in groups
        for bundle in sorted(group.bundles, key=lambda bundle: bundle.index)
        if bundle.lacking
    ]
    more = f"; {len(told) - MOST_TOLD} bundles more" if len(told) > MOST_TOLD else ""
    return "; ".join(told[:MOST_TOLD]) + more


def _waits_in_vain(replica: Replica, group: Placement) -> bool:
    """The pod of one of its members cannot run."""
    stuck = [member.ordinal for member in replica.members if member.problem is not None and not member.problem.is_harmless]
    return replica.copy is not None and any(group.rank in replica.copy.parallelism.ranks_of(ordinal) for ordinal in stuck)


def _is_known(replica: Replica) -> bool:
    return {group.rank for group in _wanted(replica)} >= replica.living_ranks and bool(replica.ranks)


def _waiting(replica: Replica) -> list[Placement]:
    return [group for group in _wanted(replica) if group.state != PLACED]


def _wanted(replica: Replica) -> list[Placement]:
    dead = {rank.rank for rank in replica.ranks if rank.state == DEAD}
    data = 0 if replica.copy is None else replica.copy.parallelism.data
    return [group for group in replica.placement if group.rank < data and group.rank not in dead]
