"""An API server with one EngineReplica in it, over TLS: lists, watches, applies to ``status.members``, and fails on demand.

It knows as much of server-side apply as one writer can see; ``tests/api/test_monitor_row.py`` asks the real one.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

from localkube.pki import Authority

COLLECTION = "/apis/enginehouse.dev/v1alpha1/namespaces/here/enginereplicas"
LOOK_SECONDS = 0.1


@dataclass
class FakeApi:
    """``failures`` are the statuses of the next requests (0 = drop the connection), ``watch_failures`` of those that watch;
    ``requests`` is what came, in order. What is changed by :meth:`change` is told to those that watch.
    """

    port: int
    credentials: Path
    uid: str = "replica-uid"
    exists: bool = True
    token: str = "first"
    members: list[dict[str, Any]] = field(default_factory=list)
    version: int = 1
    failures: list[int] = field(default_factory=list)
    watch_failures: list[int] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    deleting: bool = False
    data: int | None = None
    """``spec.data``."""
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    """All that was to be seen, with its version."""
    watches: int = 0
    """Under way."""
    cuts: list[str] = field(default_factory=list)
    """How watches were ended: ``end``, ``cut``, ``expire``, or what they are told instead of an event."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def row(self, name: str = "pod-0") -> dict[str, Any] | None:
        return next((member for member in self.members if member["name"] == name), None)

    def wait_for(self, condition: Any, *, timeout_seconds: float = 20.0) -> None:
        """Asked again at every request, and a few times a second: a condition may be about a process that asks for nothing."""
        deadline = time.monotonic() + timeout_seconds
        with self.changed:
            while not condition(self):
                left = deadline - time.monotonic()
                assert left > 0, (self.members, self.requests)
                self.changed.wait(min(left, LOOK_SECONDS))

    def change(self, kind: str = "MODIFIED", **fields: Any) -> None:
        """Something else than the monitor changes the replica."""
        with self.changed:
            for key, value in fields.items():
                setattr(self, key, value)
            self._changed(kind)

    def _changed(self, kind: str) -> None:
        self.version += 1
        self.events.append((self.version, kind, self._object()))
        self.changed.notify_all()

    def delete(self) -> None:
        self.change("DELETED", exists=False)

    def cut_watches(self, how: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.watches, 20), "nobody watches"
            self.cuts.append(how)
            self.changed.notify_all()

    def reads(self) -> int:
        return sum(method == "GET" and "watch=true" not in url for method, url in self.requests)

    def watch_requests(self) -> list[str]:
        return [url for _, url in self.requests if "watch=true" in url]

    def writes(self) -> int:
        return sum(method == "PATCH" for method, _ in self.requests)

    def rotate(self, token: str) -> None:
        self.token = token
        (self.credentials / "token").write_text(token)

    def handle(self, method: str, url: str, headers: Any, body: bytes) -> tuple[int, dict[str, Any]]:
        with self.changed:
            self.requests.append((method, url))
            self.changed.notify_all()
            path, query = urlparse(url).path, parse_qs(urlparse(url).query)
            failures = self.watch_failures if "watch" in query else self.failures
            if failures:
                return failures.pop(0), {"message": "on purpose"}
            if headers["Authorization"] != f"Bearer {self.token}":
                return 401, {"message": "Unauthorized"}
            if method == "PATCH" and path == f"{COLLECTION}/replica/status":
                if not self.exists:
                    return 404, {"kind": "Status", "details": {"name": "replica"}}
                assert headers["Content-Type"] == "application/apply-patch+yaml"
                assert query == {"fieldManager": ["pod-0"], "force": ["true"]}
                return self._apply(yaml.safe_load(body))
            assert (method, path, query["fieldSelector"]) == ("GET", COLLECTION, ["metadata.name=replica"])
            items = [self._object()] if self.exists else []
            return 200, {"metadata": {"resourceVersion": str(self.version)}, "items": items}

    def watch(self, url: str, send: Callable[[dict[str, Any]], None]) -> str:
        """Until somebody cuts it; how."""
        query = parse_qs(urlparse(url).query)
        assert query["allowWatchBookmarks"] == ["true"]
        assert int(query["timeoutSeconds"][0]) > 0
        version, told = int(query["resourceVersion"][0]), 0
        with self.changed:
            self.watches += 1
            cuts = len(self.cuts)
            self.changed.notify_all()
            try:
                while True:
                    for number, kind, what in self.events[told:]:
                        if number > version:
                            send({"type": kind, "object": what})
                    told = len(self.events)
                    if len(self.cuts) > cuts:
                        return self.cuts[-1]
                    self.changed.wait()
            finally:
                self.watches -= 1

    def _apply(self, patch: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        wanted = patch["metadata"]
        if wanted.get("resourceVersion", str(self.version)) != str(self.version):
            return 409, {"message": "conflict"}
        members = patch["status"].get("members", [])
        self.members = [*(member for member in self.members if member["name"] != "pod-0"), *members]
        self._changed("MODIFIED")
        return 200, self._object()

    def _object(self) -> dict[str, Any]:
        deleting = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if self.deleting else {}
        return {
            "metadata": {"name": "replica", "uid": self.uid, "resourceVersion": str(self.version), **deleting},
            "spec": {"index": 0} | ({} if self.data is None else {"data": self.data}),
            "status": {"members": list(self.members)},
        }


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[FakeApi]:
    authority = Authority(folder / "pki")
    authority.serving("server", addresses=("127.0.0.1",))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = api.handle(self.command, self.path, self.headers, body)
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            if status == 200 and "watch=true" in self.path:
                self._watch()
                return
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _watch(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            how = api.watch(self.path, self._event)
            if how == "expire":
                self._event({"type": "ERROR", "object": {"kind": "Status", "code": 410}})
            elif how not in ("end", "cut"):
                self._chunk(how.encode())
            if how == "end":
                self._chunk(b"")
            else:
                self.close_connection = True
                self.connection.close()

        def _event(self, event: dict[str, Any]) -> None:
            self._chunk(json.dumps(event).encode() + b"\n")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

        do_GET = do_PATCH = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "pki/server.crt", folder / "pki/server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    credentials = folder / "credentials"
    credentials.mkdir()
    (credentials / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (credentials / "token").write_text("first")
    api = FakeApi(port=server.server_address[1], credentials=credentials)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
