"""What one user asked of the API server, from its audit log.

The one job: count finished requests by verb and kind, from a place in the log on. Invariant: a request is counted once, when it was
answered; dry runs are no writes. Not done here: rights (tests/used_rights.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

WRITES = ("create", "update", "patch", "delete", "deletecollection")


class _Reference(msgspec.Struct, frozen=True):
    resource: str = ""
    subresource: str = ""


class _User(msgspec.Struct, frozen=True):
    username: str = ""


class _Answer(msgspec.Struct, frozen=True):
    code: int = 0


class _Entry(msgspec.Struct, frozen=True, rename="camel"):
    verb: str
    request_uri: str = msgspec.field(name="requestURI", default="")
    user: _User = _User()
    object_ref: _Reference = _Reference()
    response_status: _Answer = _Answer()


@dataclass(frozen=True)
class Asked:
    """Successful requests by ``verb resource``; refused ones with their code."""

    requests: Counter[str]
    refused: Counter[str]

    def writes(self, *, events: bool) -> int:
        """Those that changed something: Events alone, or all others but the renewal of a Lease."""
        written = {what: count for what, count in self.requests.items() if what.split()[0] in WRITES}
        return sum(count for what, count in written.items() if (" events" in what) == events and " leases" not in what)


class AuditLog:
    """``asked`` counts what came since it was asked last."""

    def __init__(self, path: Path, *, user: str) -> None:
        self._path, self._user = path, user
        self._offset = path.read_bytes().rfind(b"\n") + 1

    def asked(self) -> Asked:
        found = Asked(Counter(), Counter())
        decoder = msgspec.json.Decoder(_Entry)
        needle = f'"username":"{self._user}"'.encode()
        with self._path.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                if needle in line:
                    _count(found, decoder.decode(line))
        return found


def _count(found: Asked, entry: _Entry) -> None:
    part = f"/{entry.object_ref.subresource}" if entry.object_ref.subresource else ""
    verb = "try" if "dryRun" in entry.request_uri else entry.verb
    what = f"{verb} {entry.object_ref.resource}{part}"
    code = entry.response_status.code
    if code < 300:
        found.requests[what] += 1
    else:
        found.refused[f"{what} {code}"] += 1
