"""The row of this pod in its replica's status: what is in it, and when it has to be written. Pure.

Invariants: a row belongs to one pod UID for ever; a failure is in it once, however often it is told; the eight newest are kept,
with the evidence of the newest alone; a row changes only when something happened, so that a settled pod writes nothing. Does not
talk to anybody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

KEPT_FAILURES: Final = 8
BY_PIPE: Final = "Pipe"
BY_LAUNCHER: Final = "Launcher"

FAILURE_KEYS: Final = ("role", "rank", "index", "incarnation", "pid", "exitCode", "signal", "class", "message", "evidence")
"""What a launcher tells of a death."""

_LONGEST_TEXT: Final = 4096
_LONGEST_NOTE: Final = 253
_RANK_KEYS: Final = ("rank", "incarnation", "state", "maxContextLength", "kvBlocks")
_API_SERVER_KEYS: Final = ("index", "incarnation", "state")
_GROUP_KEYS: Final = ("rank", "strategy", "state")
_BUNDLE_KEYS: Final = ("index", "node", "state", "lacking")

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """``ranks``, ``api_servers``, ``placement`` and ``failures`` hold the fields of ``EngineReplica.status.members``, failures
    oldest first."""

    name: str
    uid: str
    address: str
    state: str = "Starting"
    ranks: tuple[Fields, ...] = ()
    api_servers: tuple[Fields, ...] = ()
    failures: tuple[Fields, ...] = ()
    placement: tuple[Fields, ...] = ()

    def fields(self) -> dict[str, Any]:
        """The element of ``status.members``."""
        return {
            "name": self.name,
            "uid": self.uid,
            "state": self.state,
            "address": self.address,
            "ranks": [dict(rank) for rank in self.ranks],
            # A pod that is not a leader has none.
            **({"apiServers": [dict(server) for server in self.api_servers]} if self.api_servers else {}),
            **({"placement": [dict(group) for group in self.placement]} if self.placement else {}),
            "failures": [dict(failure) for failure in self.failures],
        }


def found_in(replica: Fields, *, name: str, uid: str) -> Row | None:
    """This pod's row as the API has it; None before the first write."""
    members = (replica.get("status") or {}).get("members") or []
    found = next((member for member in members if member.get("name") == name and member.get("uid") == uid), None)
    if found is None:
        return None
    return Row(
        name=name,
        uid=uid,
        address=found.get("address", ""),
        state=found.get("state", ""),
        ranks=tuple(found.get("ranks") or ()),
        api_servers=tuple(found.get("apiServers") or ()),
        failures=tuple(found.get("failures") or ()),
        placement=tuple(found.get("placement") or ()),
    )


def adopted(row: Row, found: Row, *, heard_state: bool) -> Row:
    """After a restart of the monitor: the failures that were written stay, and the state until the launcher has told it."""
    if not heard_state:
        row = dataclasses.replace(
            row, state=found.state, ranks=found.ranks, api_servers=found.api_servers, placement=found.placement
        )
    own = row.failures
    row = dataclasses.replace(row, failures=found.failures)
    for failure in own:
        row = with_failure(row, failure)
    return row


def with_state(row: Row, message: Fields) -> Row:
    """The launcher's ``state`` message, which is whole."""
    ranks = tuple({key: rank[key] for key in _RANK_KEYS if rank.get(key) is not None} for rank in message["ranks"])
    servers = tuple(
        {key: server[key] for key in _API_SERVER_KEYS if server.get(key) is not None} for server in message.get("apiServers") or ()
    )
    placement = tuple(
        _known(group, _GROUP_KEYS) | {"bundles": [_known(bundle, _BUNDLE_KEYS) for bundle in group.get("bundles") or ()]}
        for group in message.get("placement") or ()
    )
    return dataclasses.replace(row, state=message["state"], ranks=ranks, api_servers=servers, placement=placement)


def _known(told: Fields, keys: tuple[str, ...]) -> dict[str, Any]:
    """Those that the schema has, without what says nothing, and not longer than it takes."""
    found = {key: told[key] for key in keys if told.get(key) not in (None, "")}
    return {key: value[:_LONGEST_NOTE] if isinstance(value, str) else value for key, value in found.items()}


def was_told_of_a_death(before: Row, after: Row, *, noticed: Collection[int | None]) -> bool:
    """A rank is dead now, and no process of it has died in this pod: ``noticed`` are the ranks of those that have."""
    was, now = ({rank["rank"] for rank in row.ranks if rank["state"] == "Dead"} for row in (before, after))
    return not now - was <= set(noticed)


def failure(message: Fields, *, detected_by: str, detected_time: str) -> dict[str, Any]:
    """From the launcher's ``exited`` message. Times are RFC 3339; ``reportedTime`` is added when it is written."""
    found = {key: message[key] for key in FAILURE_KEYS if message.get(key) is not None}
    texts = {key: str(found[key])[-_LONGEST_TEXT:] for key in ("message", "evidence") if key in found}
    return found | {"message": ""} | texts | {"detectedBy": detected_by, "detectedTime": detected_time}


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


def with_launcher_gone(row: Row) -> Row:
    """Nothing of this pod lives any more."""
    ranks, servers = ([{**one, "state": "Dead"} for one in part] for part in (row.ranks, row.api_servers))
    return with_state(row, {"state": "Failed", "ranks": ranks, "apiServers": servers})


def with_failure(row: Row, failure: Fields) -> Row:
    """The same row when it has the failure already, but for evidence that came later."""
    newest = row.failures[-1:]
    if newest and _identity(newest[0]) == _identity(failure):
        late = {key: failure[key] for key in ("evidence",) if key in failure}
        return dataclasses.replace(row, failures=(*row.failures[:-1], {**newest[0], **late}))
    if any(_identity(known) == _identity(failure) for known in row.failures):
        return row
    known = tuple({key: value for key, value in one.items() if key != "evidence"} for one in row.failures)
    return dataclasses.replace(row, failures=(*known, failure)[-KEPT_FAILURES:])


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
    # The pid tells a process from one of an earlier life of this container; one that could not be started has none.
    return tuple(failure.get(key) for key in ("role", "rank", "index", "incarnation", "pid"))
