"""Conditions as the API conventions want them.

Invariant: ``lastTransitionTime`` moves only when ``status`` does; each condition says which generation it is about.
Does not decide what is true (``status.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

MESSAGE_CHARACTERS: Final = 2048
"""Longer ones are cut: the schema's limit is 32,768, a reader's is lower."""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """``is_true`` None = Unknown."""

    type: str
    is_true: bool | None
    reason: str
    message: str = ""


def conditions(
    wanted: Iterable[Condition], *, previous: Iterable[Mapping[str, Any]], generation: int, now: datetime
) -> list[dict[str, Any]]:
    """As written to a status, in the order given."""
    known = {condition["type"]: condition for condition in previous}
    return [_condition(condition, known.get(condition.type), generation, now) for condition in wanted]


def _condition(condition: Condition, previous: Mapping[str, Any] | None, generation: int, now: datetime) -> dict[str, Any]:
    status = {True: "True", False: "False", None: "Unknown"}[condition.is_true]
    unchanged = previous is not None and previous["status"] == status
    return {
        "type": condition.type,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": previous["lastTransitionTime"] if previous is not None and unchanged else timestamp(now),
        "reason": condition.reason,
        "message": cut(condition.message),
    }


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def cut(message: str) -> str:
    """Short enough for a condition."""
    return message if len(message) <= MESSAGE_CHARACTERS else message[: MESSAGE_CHARACTERS - 4] + " ..."
