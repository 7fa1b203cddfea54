"""Writes this pod's row into its replica (server-side apply, field manager = pod name).

Invariant: a write goes to this pod's element alone, and stays only in the replica with this pod's UID. Does not retry:
``writer.py`` does, by the class of the exception.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

from enginehouse_operator.apply_body import apply_body
from enginehouse_operator.monitor.connection import Access, Connection, Unavailable
from enginehouse_operator.monitor.row import Row

_GROUP: Final = "enginehouse.dev"
_VERSION: Final = "v1alpha1"


class Conflict(Exception):
    """The replica has changed, or is another one: what it is like now has to be known first."""


class Replaced(Exception):
    """Another replica has taken the name of this pod's. ``uid`` is the other's."""

    def __init__(self, uid: str) -> None:
        super().__init__(f"the replica of this name has UID {uid} now")
        self.uid = uid


class Rejected(Exception):
    """The API refuses what the row says, or knows no such replica; the same row will be refused again."""


def replicas_path(namespace: str) -> str:
    """Where the replicas of a namespace are."""
    return f"/apis/{_GROUP}/{_VERSION}/namespaces/{quote(namespace)}/enginereplicas"


@dataclass
class RowApi:
    """One replica, one row."""

    access: Access
    namespace: str
    replica: str
    replica_uid: str
    field_manager: str
    _connection: Connection = field(init=False)

    def __post_init__(self) -> None:
        self._connection = Connection(self.access)

    def apply(self, row: Row, *, resource_version: str | None) -> None:
        """Write the row; with ``resource_version`` only if the replica has not changed since. Raises these, Unavailable."""
        # The API server does not look at a UID in an apply to a status, and a resource version in every write would fail whenever
        # somebody else has written. So the first write says which version was seen, and later ones look at the answer.
        uid = self._apply([row.fields()], resource_version)
        if uid != self.replica_uid:
            self._apply([], None)
            raise Replaced(uid)

    def close(self) -> None:
        """Drop the kept connection."""
        self._connection.close()

    def _apply(self, members: list[dict[str, Any]], resource_version: str | None) -> str:
        """The UID of the replica that it was written to."""
        metadata = {"name": self.replica, "namespace": self.namespace}
        if resource_version is not None:
            metadata["resourceVersion"] = resource_version
        body = {
            "apiVersion": f"{_GROUP}/{_VERSION}",
            "kind": "EngineReplica",
            "metadata": metadata,
            "status": {"members": members},
        }
        query = urlencode({"fieldManager": self.field_manager, "force": "true"})
        path = f"{replicas_path(self.namespace)}/{quote(self.replica)}/status?{query}"
        headers = {"Content-Type": "application/apply-patch+yaml"}
        status, text = self._connection.ask("PATCH", path, body=apply_body(body).encode(), headers=headers)
        said = f"PATCH {path}: {status} {text[:500].decode(errors='replace')}"
        if status in (200, 201):
            return _uid(text, said)
        if status == 409:
            raise Conflict(said)
        if status in (401, 403, 408, 429) or status >= 500 or (status == 404 and not self._is_missing(text)):
            raise Unavailable(said)
        raise Rejected(said)

    def _is_missing(self, text: bytes) -> bool:
        """It is the replica that was not found, and not its kind: an API server that starts does not know all kinds at once."""
        try:
            return bool(json.loads(text)["details"]["name"] == self.replica)
        except (ValueError, KeyError, TypeError):
            return False


def _uid(text: bytes, said: str) -> str:
    try:
        return str(json.loads(text)["metadata"]["uid"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"the answer is no object: {said}") from error
