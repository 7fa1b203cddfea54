"""Which bundle is whose, and what a bundle waits for. Pure.

A rank's placement group has a bundle for each worker, and may have spare ones. Ray puts bundles wherever the rank's members have
room; workers take them in the order of those members, the driver's own node first, or as they are told by index.

Invariant: every worker gets a bundle of its own, in the member in which its launcher expects it, or nothing is started. Ray itself
never says what a bundle lacks: it is found here, from what each node has and what of it is free. Does not know Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from enginehouse_engine.launcher.ray_node import MEMBER_LABEL
from enginehouse_engine.ray.manager_messages import WantedRank


class PlacementRefused(Exception):
    """The workers of a rank cannot be put into its bundles: what was wanted, what was found, what to do."""


@dataclass(frozen=True)
class Node:
    """A living node of the Ray cluster; ``member`` is None where somebody else has started it."""

    id: str
    name: str
    member: int | None
    total: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)


def check(wanted: WantedRank) -> None:
    """Raises PlacementRefused for bundles that no placement could ever satisfy."""
    if not wanted.bundles:
        return
    rank, workers, bundles = wanted.rank, len(wanted.members), wanted.bundles
    if len(bundles) != workers:
        raise PlacementRefused(
            f"rank {rank} has {workers} workers and is told {len(bundles)} bundle indices ({_listed(bundles)}): give one for each"
        )
    if twice := sorted(index for index, times in Counter(bundles).items() if times > 1):
        raise PlacementRefused(
            f"rank {rank} is told bundle indices {_listed(bundles)}, {_listed(twice)} more than once: each worker needs its own"
        )
    if min(bundles) < 0:
        raise PlacementRefused(f"rank {rank} is told bundle indices {_listed(bundles)}: they count from 0")


def bundle_count(wanted: WantedRank) -> int:
    """As many as there are workers; more where an index says so, which are spare."""
    return max(len(wanted.members), 1 + max(wanted.bundles, default=-1))


def label_selector(wanted: WantedRank) -> dict[str, str]:
    """Of every bundle: the rank's members and no other node."""
    return {MEMBER_LABEL: f"in({','.join(map(str, sorted(set(wanted.members))))})"}


def positions(wanted: WantedRank, *, placed: Mapping[int, str], nodes: Iterable[Node], driver: str) -> tuple[int, ...]:
    """The bundle of worker 0, 1, ...; ``placed`` says in which node each bundle is, ``driver`` is the manager's node.

    Raises PlacementRefused when a worker would not be in the member in which it is expected.
    """
    check(wanted)
    if len(placed) < len(wanted.members):
        raise PlacementRefused(f"rank {wanted.rank} has {len(wanted.members)} workers, its placement group {len(placed)} bundles")
    members = {node.id: node.member for node in nodes}
    member_of = {index: members.get(node) for index, node in placed.items()}
    order = sorted(placed, key=lambda index: (placed[index] != driver, _or_last(member_of[index]), index))
    chosen = wanted.bundles or _in_their_members(wanted.members, order=order, member_of=member_of)
    if unknown := [index for index in chosen if index not in placed]:
        raise PlacementRefused(f"rank {wanted.rank} is told bundle {unknown[0]}, its group has {len(placed)}, counted from 0")
    for worker, (index, member) in enumerate(zip(chosen, wanted.members, strict=True)):
        if (found := member_of[index]) != member:
            where = "a node without a member's number" if found is None else f"member {found}"
            raise PlacementRefused(
                f"worker {worker} of rank {wanted.rank} belongs in member {member}, its bundle {index} is in {where}: "
                "members need as many accelerators as they have workers, and nobody else may take them"
            )
    return tuple(chosen)


def have_joined(wanted: WantedRank, nodes: Iterable[Node]) -> bool:
    """All members of the rank. Until then nothing is wrong yet."""
    return set(wanted.members) <= {node.member for node in nodes}


def lacking(wanted: WantedRank, *, resource: str, nodes: Iterable[Node]) -> tuple[str, ...]:
    """What each bundle of a group that is not placed waits for; empty = nothing, it only waits for the others.

    Like Ray, as if the bundles were put one after the other where there is room.
    """
    members = sorted(set(wanted.members))
    own = [node for node in nodes if node.member in members]
    room = sum(int(node.free.get(resource, 0.0)) for node in own)
    count = bundle_count(wanted)
    reason = _shortage(resource, members=members, own=own)
    return tuple("" if index < room else f"needs {resource}: 1, {reason}" for index in range(count))


def _shortage(resource: str, *, members: list[int], own: list[Node]) -> str:
    if absent := [member for member in members if member not in {node.member for node in own}]:
        return f"{_members(absent)} {'has' if len(absent) == 1 else 'have'} not joined"
    if not (total := sum(int(node.total.get(resource, 0.0)) for node in own)):
        return "no node has it"
    free = sum(int(node.free.get(resource, 0.0)) for node in own)
    return f"{_members(members)} {'has' if len(members) == 1 else 'have'} {total}, {free or 'none'} free"


def _in_their_members(members: Iterable[int], *, order: list[int], member_of: Mapping[int, int | None]) -> tuple[int, ...]:
    """A bundle for each. Where a member has none left it is another's, which whoever asked will not have."""
    left = list(order)
    chosen = []
    for member in members:
        chosen.append(next((index for index in left if member_of[index] == member), left[0]))
        left.remove(chosen[-1])
    return tuple(chosen)


def _members(numbers: list[int]) -> str:
    return f"member{'s' * (len(numbers) > 1)} {_listed(numbers)}"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _or_last(member: int | None) -> float:
    return float("inf") if member is None else member
