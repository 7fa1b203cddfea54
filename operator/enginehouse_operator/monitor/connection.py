"""One kept HTTPS connection to the API server, as the pod's service account.

Invariants: every answer has a deadline; a connection that nobody answers on any more is found by the kernel (keepalive, user
time-out) and not by whoever uses it next; one that the server closed while it was idle is replaced before anything is sent on it.
The token is read for each request, since the kubelet rotates it. Does not try anything a second time otherwise, nor know what is
asked.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEADLINE_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 30
_PROBE_SECONDS: Final = 10


class Unavailable(Exception):
    """No answer, or one that another time may change."""


@dataclass(frozen=True)
class Access:
    """Where the API server is and what opens it."""

    host: str
    port: int
    token_file: Path
    ca_file: Path


class Connection:
    """For one thread, one request after the other."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._kept: http.client.HTTPSConnection | None = None

    def ask(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer. Raises Unavailable."""
        with self.answer(method, path, body=body, headers=headers) as response:
            return response.status, response.read()

    @contextlib.contextmanager
    def answer(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        silence_seconds: float = DEADLINE_SECONDS,
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer while it is read, with at most ``silence_seconds`` between two pieces. Raises Unavailable."""
        try:
            response = self._send(method, path, body, dict(headers or {}))
            if self._kept is not None and self._kept.sock is not None:
                self._kept.sock.settimeout(silence_seconds)
            with response:
                yield response
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(f"{method} {path}: {type(error).__name__}: {error}") from error
        except BaseException:
            self.close()  # What was not read of this answer would be taken for the next one.
            raise

    def close(self) -> None:
        """The next request makes a new one."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        token = self._access.token_file.read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", **headers}
        if self._kept is not None and (self._kept.sock is None or _has_ended(self._kept.sock)):
            self.close()
        was_kept = self._kept is not None
        try:
            return self._send_now(method, path, body, headers)
        except (ConnectionError, ssl.SSLEOFError):
            self.close()
            if not was_kept:
                raise
            # The server closed it at this very moment. All requests here may be sent twice.
            return self._send_now(method, path, body, headers)

    def _send_now(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._kept is None:
            self._kept = self._connect()
        self._kept.sock.settimeout(DEADLINE_SECONDS)
        self._kept.request(method, path, body=body, headers=headers)
        return self._kept.getresponse()

    def _connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self._access.ca_file))
        made = http.client.HTTPSConnection(self._access.host, self._access.port, timeout=DEADLINE_SECONDS, context=context)
        made.connect()
        for option, value in (
            (socket.TCP_KEEPIDLE, _PROBE_SECONDS),
            (socket.TCP_KEEPINTVL, _PROBE_SECONDS),
            (socket.TCP_KEEPCNT, SILENCE_SECONDS // _PROBE_SECONDS - 1),
            (socket.TCP_USER_TIMEOUT, SILENCE_SECONDS * 1000),
        ):
            made.sock.setsockopt(socket.IPPROTO_TCP, option, value)
        made.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return made


def _has_ended(kept: socket.socket) -> bool:
    """Between two requests nothing is said: whatever is there to be read is the end."""
    poller = select.poll()
    poller.register(kept, select.POLLIN | select.POLLRDHUP)
    return bool(poller.poll(0))
