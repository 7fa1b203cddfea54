"""An API server with one EngineReplica in it, over TLS: reads, applies to ``status.members``, and fails on demand.

It knows as much of server-side apply as one writer can see; ``tests/api/test_monitor_row.py`` asks the real one.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from localkube.pki import Authority

PATH = "/apis/enginehouse.dev/v1alpha1/namespaces/here/enginereplicas/replica"


@dataclass
class FakeApi:
    """``failures`` are the statuses of the next requests (0 = drop the connection); ``requests`` what came, in order."""

    port: int
    credentials: Path
    uid: str = "replica-uid"
    exists: bool = True
    token: str = "first"
    members: list[dict[str, Any]] = field(default_factory=list)
    version: int = 1
    failures: list[int] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def row(self, name: str = "pod-0") -> dict[str, Any] | None:
        return next((member for member in self.members if member["name"] == name), None)

    def wait_for(self, condition: Any, *, timeout_seconds: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self), timeout_seconds), (self.members, self.requests)

    def writes(self) -> int:
        return sum(method == "PATCH" for method, _ in self.requests)

    def rotate(self, token: str) -> None:
        self.token = token
        (self.credentials / "token").write_text(token)

    def handle(self, method: str, url: str, headers: Any, body: bytes) -> tuple[int, dict[str, Any]]:
        with self.changed:
            self.requests.append((method, url))
            self.changed.notify_all()
            if self.failures:
                return self.failures.pop(0), {"message": "on purpose"}
            if headers["Authorization"] != f"Bearer {self.token}":
                return 401, {"message": "Unauthorized"}
            path, query = urlparse(url).path, parse_qs(urlparse(url).query)
            if not self.exists or path not in (PATH, f"{PATH}/status"):
                return 404, {"message": "not found"}
            if method == "PATCH":
                assert headers["Content-Type"] == "application/apply-patch+yaml"
                assert query == {"fieldManager": ["pod-0"], "force": ["true"]}
                return self._apply(json.loads(body))
            return 200, self._object()

    def _apply(self, patch: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        wanted = patch["metadata"]
        if wanted.get("resourceVersion", str(self.version)) != str(self.version):
            return 409, {"message": "conflict"}
        members = patch["status"].get("members", [])
        self.members = [*(member for member in self.members if member["name"] != "pod-0"), *members]
        self.version += 1
        self.changed.notify_all()
        return 200, self._object()

    def _object(self) -> dict[str, Any]:
        return {
            "metadata": {"name": "replica", "uid": self.uid, "resourceVersion": str(self.version)},
            "status": {"members": self.members},
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
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

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
