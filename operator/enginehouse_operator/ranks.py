"""Rows of a replica's members, and its ranks and API servers put together from them.

Invariant: a rank is as good as the worst of its parts; of two incarnations the newer one counts; the context length of a rank is
the smallest that any of its parts told. Does not know pods (``seen.py``) and does not decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import msgspec

from .failures import Failure

PENDING: Final = "Pending"
"""Of a rank: not placed yet; nothing of it runs."""
SERVING: Final = "Serving"
RESTARTING: Final = "Restarting"
DEAD: Final = "Dead"
FAILED: Final = "Failed"
"""Of a member: nothing in it goes on."""
API_SERVER: Final = "api-server"
"""Role of a process."""

_WORST_FIRST: Final = (DEAD, RESTARTING, "Draining", PENDING, "Starting", SERVING)


class _Unit(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What dies, and may come back, as one."""

    incarnation: int = 0
    state: str = ""


class RankRow(_Unit, frozen=True, kw_only=True):
    """One rank in a row."""

    rank: int
    max_context_length: int | None = None

    def __str__(self) -> str:
        return f"rank {self.rank}"

    def had(self, failure: Failure) -> bool:
        """Whether a process of this rank, in any incarnation, died."""
        return failure.rank == self.rank

    def death(self, **known: Any) -> Failure:
        """Of the present incarnation."""
        return Failure(role="engine-core", rank=self.rank, incarnation=self.incarnation, **known)


class ApiServerRow(_Unit, frozen=True, kw_only=True):
    """One API server in a row."""

    index: int

    def __str__(self) -> str:
        return f"API server {self.index}"

    def had(self, failure: Failure) -> bool:
        """Whether it died, in any incarnation."""
        return failure.role == API_SERVER and failure.index == self.index

    def death(self, **known: Any) -> Failure:
        """Of the present incarnation."""
        return Failure(role=API_SERVER, index=self.index, incarnation=self.incarnation, **known)


Unit = RankRow | ApiServerRow


class Bundle(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A share of a placement group: the resources of one worker."""

    index: int
    lacking: str = ""
    """Completes the sentence "bundle I of rank R ..."; empty when nothing is."""


class Placement(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The placement group of one rank, in a leader's row."""

    rank: int
    state: str = ""
    bundles: tuple[Bundle, ...] = ()


class Row(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What the monitor of one member reported."""

    name: str
    uid: str = ""
    state: str = ""
    ranks: tuple[RankRow, ...] = ()
    api_servers: tuple[ApiServerRow, ...] = ()
    failures: tuple[Failure, ...] = ()
    placement: tuple[Placement, ...] = ()
    written: datetime | None = None
    """When the API server last saw it change."""

    @property
    def units(self) -> tuple[Unit, ...]:
        return (*self.ranks, *self.api_servers)


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
    """Failures that the launcher answered itself: their rank, or API server, has a newer incarnation by now."""
    return tuple(
        failure
        for failure in row.failures
        if any(unit.had(failure) and (failure.incarnation or 0) < unit.incarnation for unit in row.units)
    )


def unanswered(row: Row) -> tuple[Failure, ...]:
    """The other ones, but for those of ranks that were taken away since."""
    answered, present = restarted_in_place(row), {None, *(rank.rank for rank in row.ranks)}
    return tuple(failure for failure in row.failures if failure not in answered and (failure.rank in present or not row.ranks))
