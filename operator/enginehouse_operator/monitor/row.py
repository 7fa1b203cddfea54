"""The row of this pod in its replica's status: what is in it, and when it has to be written. Pure.

Invariants: a row belongs to one pod UID for ever; a failure is in it once, however often it is told; the eight newest are kept; a
row changes only when something happened, so that a settled pod writes nothing. Does not talk to anybody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

KEPT_FAILURES: Final = 8
BY_PIPE: Final = "Pipe"
BY_LAUNCHER: Final = "Launcher"

_LONGEST_MESSAGE: Final = 4096
_RANK_KEYS: Final = ("rank", "incarnation", "state", "maxContextLength", "kvBlocks")
_FAILURE_KEYS: Final = ("role", "rank", "incarnation", "pid", "exitCode", "signal", "class", "message")

Fields = Mapping[str, Any]


class ForeignRow(Exception):
    """The row of this name belongs to another pod: this pod must never have run."""


@dataclass(frozen=True)
class Row:
    """``ranks`` and ``failures`` hold the fields of ``EngineReplica.status.members``, failures oldest first."""

    name: str
    uid: str
    address: str
    state: str = "Starting"
    ranks: tuple[Fields, ...] = ()
    failures: tuple[Fields, ...] = ()

    def fields(self) -> dict[str, Any]:
        """The element of ``status.members``."""
        return {
            "name": self.name,
            "uid": self.uid,
            "state": self.state,
            "address": self.address,
            "ranks": [dict(rank) for rank in self.ranks],
            "failures": [dict(failure) for failure in self.failures],
        }


def found_in(replica: Fields, *, name: str, uid: str) -> Row | None:
    """This pod's row as the API has it; None before the first write. Raises ForeignRow."""
    members = (replica.get("status") or {}).get("members") or []
    found = next((member for member in members if member.get("name") == name), None)
    if found is None:
        return None
    if found.get("uid") != uid:
        raise ForeignRow(
            f"the row of {name} belongs to the pod with UID {found.get('uid')}, this one has {uid}:"
            " a member is born once, so this pod must end"
        )
    return Row(
        name=name,
        uid=uid,
        address=found.get("address", ""),
        state=found.get("state", ""),
        ranks=tuple(found.get("ranks") or ()),
        failures=tuple(found.get("failures") or ()),
    )


def adopted(row: Row, found: Row, *, heard_state: bool) -> Row:
    """After a restart of the monitor: the failures that were written stay, and the state until the launcher has told it."""
    if not heard_state:
        row = dataclasses.replace(row, state=found.state, ranks=found.ranks)
    own = row.failures
    row = dataclasses.replace(row, failures=found.failures)
    for failure in own:
        row = with_failure(row, failure)
    return row


def with_state(row: Row, message: Fields) -> Row:
    """The launcher's ``state`` message, which is whole."""
    ranks = tuple({key: rank[key] for key in _RANK_KEYS if rank.get(key) is not None} for rank in message["ranks"])
    return dataclasses.replace(row, state=message["state"], ranks=ranks)


def failure(message: Fields, *, detected_by: str, detected_time: str) -> dict[str, Any]:
    """From the launcher's ``exited`` message. Times are RFC 3339; ``reportedTime`` is added when it is written."""
    found = {key: message[key] for key in _FAILURE_KEYS if message.get(key) is not None}
    found["message"] = str(found.get("message", ""))[-_LONGEST_MESSAGE:]
    return found | {"detectedBy": detected_by, "detectedTime": detected_time}


def launcher_failure(*, pid: int, detected_time: str) -> dict[str, Any]:
    """The launcher died itself, so nobody is left to tell why; the container's status will."""
    return {
        "role": "launcher",
        "pid": pid,
        "class": "Unknown",
        "message": "the launcher died, and the engine's processes with it; the container's status tells the cause",
        "detectedBy": BY_PIPE,
        "detectedTime": detected_time,
    }


def with_failure(row: Row, failure: Fields) -> Row:
    """The same row when it has the failure already."""
    if any(_identity(known) == _identity(failure) for known in row.failures):
        return row
    return dataclasses.replace(row, failures=(*row.failures, failure)[-KEPT_FAILURES:])


def stamped(row: Row, *, reported_time: str) -> Row:
    """With ``reportedTime`` in the failures that do not have one yet."""
    failures = tuple(known if "reportedTime" in known else {**known, "reportedTime": reported_time} for known in row.failures)
    return dataclasses.replace(row, failures=failures)


def acknowledged(row: Row, written: Row) -> Row:
    """The times of what was written, carried over to the row as it is now."""
    times = {_identity(known): known.get("reportedTime") for known in written.failures}
    failures = tuple(
        {**known, "reportedTime": times[_identity(known)]} if times.get(_identity(known)) else known for known in row.failures
    )
    return dataclasses.replace(row, failures=failures)


def _identity(failure: Fields) -> tuple[Any, ...]:
    # The pid tells API servers apart, which share all the rest.
    return tuple(failure.get(key) for key in ("role", "rank", "incarnation", "pid"))
