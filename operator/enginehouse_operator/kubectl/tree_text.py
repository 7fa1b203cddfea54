"""Draws the tree of an engine: a line for each object and each of its ranks, in columns.

Invariant: pure; ``now`` is an argument. Does not decide what is shown (``tree.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, TypeVar

from enginehouse_operator.ranks import SERVING, RankRow, Unit

from .text import Cell, Colour, Screen, age
from .tree import EngineNode, MemberNode, ReplicaNode

HEADER: Final = tuple(Cell(word) for word in ("NAME", "READY", "STATE", "CONTEXT", "AGE", "DETAIL"))
_WELL: Final = frozenset({SERVING, "AllReplicasServe", "ZeroReplicas", "Suspended"})
_BADLY: Final = frozenset({"Dead", "Failed", "Gone"})

Line = tuple[Cell, ...]


def tree_text(engines: Iterable[EngineNode], *, screen: Screen, now: datetime) -> str:
    """One table for all of them."""
    return screen.table([HEADER, *(line for engine in engines for line in _engine(engine, now))])


def _engine(engine: EngineNode, now: datetime) -> Iterable[Line]:
    ready = _colour(engine.state, is_ready=engine.ready)
    yield _line(
        f"engine/{engine.name}", str(engine.ready), engine.state, ready, engine.max_context_length, age(engine.created, now=now),
        engine.endpoint or "",
    )  # fmt: skip
    for replica, branch, below in _branches(engine.replicas):
        yield from _replica(replica, branch, below, now)


def _replica(replica: ReplicaNode, branch: str, below: str, now: datetime) -> Iterable[Line]:
    detail = f"index {replica.index}, epoch {replica.epoch}" + (f", ends: {replica.end}" if replica.end else "")
    colour = _colour(replica.state, is_ready=replica.ready)
    yield _line(
        f"{branch}replica/{replica.name}", str(replica.ready), replica.state, colour, replica.max_context_length,
        age(replica.created, now=now), detail,
    )  # fmt: skip
    for member, inner, inner_below in _branches(replica.members):
        yield from _member(member, below + inner, below + inner_below, now)


def _member(member: MemberNode, branch: str, below: str, now: datetime) -> Iterable[Line]:
    where = f"{member.role} on {member.node}" if member.node else member.role
    colour = _colour(member.state, is_ready=member.ready)
    name = f"{branch}pod/{member.name}"
    yield _line(name, str(member.ready), member.state, colour, None, age(member.created, now=now), where)
    units: list[Unit] = [*member.ranks, *member.api_servers]
    for unit, inner, _ in _branches(units):
        colour = _colour(unit.state, is_ready=unit.state == SERVING)
        context = unit.max_context_length if isinstance(unit, RankRow) else None
        lives = f"incarnation {unit.incarnation}" if unit.incarnation > 1 else ""
        yield _line(f"{below}{inner}{unit}", "", unit.state, colour, context, "", lives)


def _line(name: str, ready: str, state: str, colour: Colour, context: int | None, old: str, detail: str) -> Line:
    length = "" if context is None else str(context)
    return (Cell(name), Cell(ready, colour), Cell(state, colour), Cell(length), Cell(old), Cell(detail, "faint"))


def _colour(state: str, *, is_ready: bool) -> Colour:
    if state in _BADLY:
        return "bad"
    return "good" if is_ready or state in _WELL else "passing"


_T = TypeVar("_T")


def _branches(items: Iterable[_T]) -> Iterable[tuple[_T, str, str]]:
    """Each with what stands before it, and before what is below it."""
    listed = list(items)
    for number, item in enumerate(listed):
        is_last = number == len(listed) - 1
        yield item, "└─" if is_last else "├─", "  " if is_last else "│ "
