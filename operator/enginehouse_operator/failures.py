"""A failure of a process: the record that rows, endings, successors and ``status.lastFailure`` carry.

Invariant: a failure is identified by (replica UID, rank, incarnation); whoever reports it, and however often, it counts once.
Does not decide what a failure leads to (``budget.py``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

REMOVED: Final = "Removed"
"""Class of a record that is no failure: a member was deleted by somebody early in its life. It delays, it costs no budget."""

UNKNOWN: Final = "Unknown"
"""Class of a death whose cause the reporter could not see."""

PERMANENT_CLASSES: Final = frozenset({"InvalidConfig", "ModelNotFound", "ContextTooSmall"})
"""Classes of exit code 78: trying again cannot help."""


_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Code = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_Time = Annotated[datetime, Meta(tz=True)]


class Failure(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One death as the API carries it, within its schema. Times are UTC. Fields the reporter did not know are absent."""

    replica: str = ""
    replica_uid: str = msgspec.field(name="replicaUID", default="")
    revision: str = ""
    member: str = ""
    role: Annotated[str, Meta(max_length=64)] = ""
    rank: _Count | None = None
    incarnation: _Count | None = None
    pid: _Count | None = None
    exit_code: _Code | None = None
    signal: _Code | None = None
    class_: Annotated[str, Meta(max_length=128)] = msgspec.field(name="class", default=UNKNOWN)
    message: Annotated[str, Meta(max_length=32768)] = ""
    detected_by: str = ""
    detected_time: _Time | None = None
    reported_time: _Time | None = None

    @property
    def is_permanent(self) -> bool:
        """Whether trying again cannot help."""
        return self.class_ in PERMANENT_CLASSES

    @property
    def costs_budget(self) -> bool:
        return self.class_ != REMOVED

    @property
    def identity(self) -> tuple[str, int | None, int | None, int | None]:
        """What makes two reports one failure. Processes of no rank are told apart by pid."""
        return (self.replica_uid, self.rank, self.incarnation, self.pid if self.rank is None else None)

    def __str__(self) -> str:
        who = " ".join(part for part in (self.role, f"rank {self.rank}" if self.rank is not None else "") if part)
        what = self.class_
        if self.signal is not None:
            what = f"signal {self.signal}"
        elif self.exit_code is not None:
            what = f"{self.class_}, exit code {self.exit_code}"
        text = f"{who or 'a process'} of {self.member or self.replica}: {what}"
        return f"{text}: {self.message}" if self.message else text


def seconds_between(earlier: datetime, later: datetime) -> float:
    return (later - earlier).total_seconds()
