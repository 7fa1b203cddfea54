"""One connection: what a client may take before it has said what it wants and when it does not read, and an end that no request
runs into.

Uvicorn waits for ever for the first request of a connection, and for the next one after anything has come since the last
response; it collects heads without bound, and trailers, which may follow a body; it holds a response back while the client does not
read it, for ever too, and whoever waits for it holds what it is about to send. When a server goes, it closes connections just when
their clients may use them again: what they send then is lost.
Invariants: a connection whose request's head is not complete within the keep-alive time, or after 64 KiB, is closed, and so is one
that brings as much which is no body, and one whose client takes nothing for two minutes while more than 64 KiB wait for it; a
client that has read the end of a connection's last response knows that it is the last.
Does not bound bodies (``endpoints.py``), does not know when the server goes (``server.py``, ``serving.py``).
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES: Final = 64 * 1024
MOST_STALL_SECONDS: Final = 120.0
"""A client that reads 400 bytes in a second is not cut."""
CONNECTION: Final = "connection"
"""Where the application finds the connection, in the scope's state."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _head_timer: asyncio.TimerHandle | None = None
    """Runs while a head is awaited."""
    _head_bytes = 0
    """Of a head, or of what came since the last piece of a body and is none."""
    _stall_timer: asyncio.TimerHandle | None = None
    """Runs while so much waits to be read that no more is taken."""
    stall_seconds = MOST_STALL_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn: always TCP
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_complete()
        self._is_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._is_read()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is None:
            self._stay_idle()
        if self._head_bytes > MOST_HEAD_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][CONNECTION] = self
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_complete()
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def end_with_response(self) -> None:
        """To be called before the last part of a response is sent: the connection ends with it."""
        if self.cycle is None or not self.cycle.keep_alive:
            return  # the client was told in the response's head
        self.cycle.keep_alive = False
        # Held back until the connection is closed, so that the last part and the end arrive together: without it the end comes a
        # moment later, and a client that sends its next request in that moment loses it.
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def close_if_idle(self) -> None:
        """Unless a response is under way, or a request has arrived that was not read yet: closing would answer it with a reset."""
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            return
        # One's own, since what the loop gives out cannot be shut down.
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as connection:
            arrived = select.poll()
            arrived.register(connection, select.POLLIN)
            if arrived.poll(0):
                return
            if not self.transport.get_write_buffer_size():
                # The transport closes only when its loop comes round; whatever arrives until then would be reset.
                connection.shutdown(socket.SHUT_RDWR)
        self.transport.close()

    def _await_head(self) -> None:
        self._head_is_complete()
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _stay_idle(self) -> None:
        """What begins no request, as an empty line or the rest of a body that nobody wanted, has only stopped uvicorn's clock."""
        if self.cycle is not None and self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _is_read(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _head_is_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
