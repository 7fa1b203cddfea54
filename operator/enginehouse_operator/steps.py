"""The steps a plan is made of. Each says what to do to which object, for which reason, in words for logs and Events.

Invariant: a step is complete: acting on it needs nothing but the step, the engine and the operator's settings; doing it twice,
or not at all because the operator died, leaves a world from which the next plan goes on.
Does not act (``act.py``).
"""

from __future__ import annotations

from typing import Any

import msgspec

from .api import End, EngineCopy
from .failures import Failure


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """``name`` is the object's name; ``reason`` a constant of ``reasons``; ``message`` a sentence."""

    name: str
    reason: str
    message: str


class CreateReplica(Step, frozen=True, kw_only=True):
    index: int
    epoch: int
    copy: EngineCopy
    failures: tuple[Failure, ...] = ()


class EndReplica(Step, frozen=True, kw_only=True):
    uid: str
    end: End


class DeleteReplica(Step, frozen=True, kw_only=True):
    uid: str


class ResizeReplica(Step, frozen=True, kw_only=True):
    """Another number of ranks, without a successor."""

    uid: str
    version: str
    """Of the object that was read: the number follows from the row that is in it."""
    data: int


class RemoveRow(Step, frozen=True, kw_only=True):
    """The row of a member whose pod is gone."""

    uid: str
    member: str
    member_uid: str
    place: int
    """Of the row in the list that was read."""


class CreateMember(Step, frozen=True, kw_only=True):
    replica: str
    ordinal: int


class LeaveService(Step, frozen=True, kw_only=True):
    """Take the label off that the service selects."""

    uid: str


class DeleteMember(Step, frozen=True, kw_only=True):
    uid: str


class ApplyObject(Step, frozen=True, kw_only=True):
    """Server-side apply of a service or right."""

    manifest: dict[str, Any]


AnyStep = (
    CreateReplica
    | EndReplica
    | DeleteReplica
    | ResizeReplica
    | RemoveRow
    | CreateMember
    | LeaveService
    | DeleteMember
    | ApplyObject
)
