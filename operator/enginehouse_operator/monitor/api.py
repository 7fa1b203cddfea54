"""Reads this pod's replica and writes this pod's row, over one kept connection to the API server.

Invariants: every request has a deadline; a write goes to this pod's element alone (server-side apply, field manager = pod name) and
stays only in the replica with this pod's UID. Does not retry: ``writer.py`` does, by the class of the exception.
"""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from enginehouse_operator.monitor.row import Row

DEADLINE_SECONDS: Final = 5.0
_GROUP: Final = "enginehouse.dev"
_VERSION: Final = "v1alpha1"


class Unavailable(Exception):
    """No answer, or one that another time may change (time-out, 401, 403, 429, 5xx)."""


class Conflict(Exception):
    """The replica has changed, or is another one: read it again."""


class Gone(Exception):
    """This pod's replica is no more, or another of the same name has taken its place."""


class Replaced(Gone):
    """The latter."""


class Rejected(Exception):
    """The API refuses what the row says; the same row will be refused again."""


@dataclass(frozen=True)
class Access:
    """Where the API server is and what opens it."""

    host: str
    port: int
    token_file: Path
    ca_file: Path


@dataclass
class ReplicaApi:
    """One replica, one row."""

    access: Access
    namespace: str
    replica: str
    replica_uid: str
    field_manager: str
    _token: str = ""
    _connection: http.client.HTTPSConnection | None = field(default=None, repr=False)

    def read(self) -> dict[str, Any]:
        """The replica. Raises Gone, Unavailable."""
        found = self._request("GET", self._path(), None, {})
        if found["metadata"]["uid"] != self.replica_uid:
            raise Replaced(f"replica {self.replica} has UID {found['metadata']['uid']}, this pod belongs to {self.replica_uid}")
        return found

    def apply(self, row: Row, *, resource_version: str | None) -> None:
        """Write the row; with ``resource_version`` only if the replica has not changed since. Raises all of the above."""
        # The API server does not look at a UID in an apply to a status, and a resource version in every write would fail whenever
        # somebody else has written. So the first write says which version was read, and later ones look at the answer.
        found = self._apply([row.fields()], resource_version)
        if found["metadata"]["uid"] != self.replica_uid:
            self._apply([], None)
            raise Replaced(f"replica {self.replica} has UID {found['metadata']['uid']} now, this pod belongs to {self.replica_uid}")

    def _apply(self, members: list[dict[str, Any]], resource_version: str | None) -> dict[str, Any]:
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
        # JSON is YAML, so the body needs no YAML library.
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return self._request("PATCH", f"{self._path()}/status?{query}", json.dumps(body).encode(), headers)

    def close(self) -> None:
        """Drop the kept connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _path(self) -> str:
        return f"/apis/{_GROUP}/{_VERSION}/namespaces/{quote(self.namespace)}/enginereplicas/{quote(self.replica)}"

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
        try:
            status, text = self._exchange(method, path, body, headers)
            if status == 401:
                # The kubelet rotates the token.
                self._token = ""
                status, text = self._exchange(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(f"{method} {path}: {type(error).__name__}: {error}") from error
        if status in (200, 201):
            return _object(text, f"{method} {path}")
        said = f"{method} {path}: {status} {text[:500].decode(errors='replace')}"
        if status == 404:
            raise Gone(said)
        if status == 409:
            raise Conflict(said)
        if status in (401, 403, 408, 429) or status >= 500:
            raise Unavailable(said)
        raise Rejected(said)

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        if not self._token:
            self._token = self.access.token_file.read_text().strip()
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json", **headers}
        kept = self._connection is not None
        try:
            return self._send(method, path, body, headers)
        except (ConnectionError, ssl.SSLEOFError):
            self.close()
            if not kept:
                raise
            # The server had closed the idle connection. Both requests may be sent twice.
            return self._send(method, path, body, headers)

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        if self._connection is None:
            context = ssl.create_default_context(cafile=str(self.access.ca_file))
            self._connection = http.client.HTTPSConnection(
                self.access.host, self.access.port, timeout=DEADLINE_SECONDS, context=context
            )
        self._connection.request(method, path, body=body, headers=headers)
        with self._connection.getresponse() as response:
            return response.status, response.read()


def _object(text: bytes, said: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Unavailable(f"{said}: the answer is no JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("metadata"), dict) or "uid" not in found["metadata"]:
        raise Unavailable(f"{said}: the answer is no object: {text[:200]!r}")
    return found
