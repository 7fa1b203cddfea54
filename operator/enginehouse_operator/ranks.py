"""Rows of a replica's members, and its ranks put together from them.

Invariant: a rank is as good as the worst of its parts; of two incarnations the newer one counts; the context length of a rank is
the smallest that any of its parts told. Does not know pods (``observe.py``) and does not decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import msgspec

from .failures import Failure

SERVING: Final = "Serving"
RESTARTING: Final = "Restarting"
DEAD: Final = "Dead"
FAILED: Final = "Failed"
"""Of a member: nothing in it goes on."""

_WORST_FIRST: Final = (DEAD, RESTARTING, "Draining", "Starting", SERVING)


class RankRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One rank in a row."""

    rank: int
    incarnation: int = 0
    state: str = ""
    max_context_length: int | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What the monitor of one member reported."""

    name: str
    uid: str = ""
    state: str = ""
    ranks: tuple[RankRow, ...] = ()
    failures: tuple[Failure, ...] = ()
    written: datetime | None = None
    """When the API server last saw it change."""


def merged(rows: Iterable[Row]) -> tuple[RankRow, ...]:
    """One entry for each rank that any of the rows tells of, by number."""
    parts: dict[int, list[RankRow]] = {}
    for row in rows:
        for part in row.ranks:
            parts.setdefault(part.rank, []).append(part)
    return tuple(_whole(parts[rank]) for rank in sorted(parts))


def _whole(parts: list[RankRow]) -> RankRow:
    newest = max(part.incarnation for part in parts)
    present = [part for part in parts if part.incarnation == newest]
    lengths = [part.max_context_length for part in present if part.max_context_length is not None]
    return msgspec.structs.replace(min(present, key=_badness), max_context_length=min(lengths, default=None))


def _badness(part: RankRow) -> int:
    # A word of a newer monitor: not serving, and not given up.
    return _WORST_FIRST.index(part.state) if part.state in _WORST_FIRST else 1


def restarted_in_place(row: Row) -> tuple[Failure, ...]:
    """Failures that the launcher answered itself: their rank has a newer incarnation by now."""
    now = {part.rank: part.incarnation for part in row.ranks}
    return tuple(
        failure for failure in row.failures if failure.rank is not None and (failure.incarnation or 0) < now.get(failure.rank, 0)
    )


def unanswered(row: Row) -> tuple[Failure, ...]:
    """The other ones."""
    answered = restarted_in_place(row)
    return tuple(failure for failure in row.failures if failure not in answered)
