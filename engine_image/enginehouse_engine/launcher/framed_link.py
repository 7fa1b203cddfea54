"""Whole JSON messages over one TCP connection, each behind its length. Never blocks.

Invariants: what the other side may make this one keep is bounded both ways; a node that is lost shows within 15 seconds, since the
kernel asks after it when nothing is said (keepalive) and waits no longer for an acknowledgement (user timeout).
Does not know what is said, and never connects again.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec

from enginehouse_engine.launcher.event_loop import EventLoop

MOST_BYTES: Final = 4 * 1024 * 1024
"""Of one message, and of all that are still to be sent: 64 workers' records take 32 KiB."""
SILENCE_SECONDS: Final = 15
_PROBE_SECONDS: Final = 5
_LENGTH: Final = struct.Struct(">I")
_PIECE_BYTES: Final = 64 * 1024
_MOST_PIECES: Final = MOST_BYTES // _PIECE_BYTES
"""In one turn, which others wait for; the next one goes on."""
_SILENCE: Final = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class FramedLink:
    """``heard`` gets one message after the other; ``lost`` is told once why there will be no more."""

    def __init__(
        self,
        connection: socket.socket,
        loop: EventLoop,
        *,
        heard: Callable[[bytes], None],
        lost: Callable[[str], None],
        first_most_bytes: int = MOST_BYTES,
    ) -> None:
        """``first_most_bytes``: of a message that comes before it is known whom the link belongs to."""
        connection.setblocking(False)
        for option, value in (
            (socket.TCP_NODELAY, 1),
            (socket.TCP_KEEPIDLE, _PROBE_SECONDS),
            (socket.TCP_KEEPINTVL, _PROBE_SECONDS),
            (socket.TCP_KEEPCNT, SILENCE_SECONDS // _PROBE_SECONDS - 1),
            (socket.TCP_USER_TIMEOUT, SILENCE_SECONDS * 1000),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connection = connection
        self._loop = loop
        self._heard = heard
        self._lost = lost
        self._most_bytes = first_most_bytes
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._failed: OSError | None = None
        self._watches_for_room = False
        self.is_open = True
        self.was_silent = False
        """The other side's kernel did not answer any more: it is not only a process that is gone."""
        loop.watch(connection.fileno(), self._ready)

    def belongs_to(self, *, heard: Callable[[bytes], None], lost: Callable[[str], None]) -> None:
        """Others are told from now on."""
        self._heard = heard
        self._lost = lost
        self._most_bytes = MOST_BYTES

    def send(self, message: Any) -> None:
        """Send it, or as much as there is room for, and the rest when there is."""
        if not self.is_open:
            return
        data = msgspec.json.encode(message)
        if len(self._outgoing) + len(data) > MOST_BYTES:
            self._break("it does not read what it is sent")
            return
        self._outgoing += _LENGTH.pack(len(data)) + data
        self._flush()

    def close(self) -> None:
        """What the kernel has taken still arrives."""
        if self.is_open:
            self.is_open = False
            self._loop.forget(self._connection.fileno())
            self._connection.close()

    def _ready(self) -> None:
        self._read()
        if self._outgoing:
            self._flush()

    def _read(self) -> None:
        for _ in range(_MOST_PIECES):
            if not self.is_open:
                return
            try:
                piece = self._connection.recv(_PIECE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed = self._failed or error
                piece = b""
            if not piece:
                self.was_silent = self._failed is not None and self._failed.errno in _SILENCE
                self._break("it closed the connection" if self._failed is None else str(self._failed))
                return
            self._incoming += piece
            self._take_messages()

    def _take_messages(self) -> None:
        while self.is_open and len(self._incoming) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._incoming)
            if size > self._most_bytes:
                self._break(f"it announced a message of {size} bytes, at most {self._most_bytes} are allowed")
                return
            whole = _LENGTH.size + size
            if len(self._incoming) < whole:
                return
            data = bytes(self._incoming[_LENGTH.size : whole])
            del self._incoming[:whole]
            self._heard(data)

    def _flush(self) -> None:
        try:
            while self._outgoing and self.is_open:
                del self._outgoing[: self._connection.send(self._outgoing, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError as error:
            # What it said before it broke is still to be read: the reading finds the end. The error is told once, here.
            self._failed = error
            self._outgoing.clear()
        if bool(self._outgoing) is not self._watches_for_room:
            self._watches_for_room = bool(self._outgoing)
            self._loop.forget(self._connection.fileno())
            wanted = select.EPOLLIN | select.EPOLLOUT if self._watches_for_room else select.EPOLLIN
            self._loop.watch(self._connection.fileno(), self._ready, events=wanted)

    def _break(self, reason: str) -> None:
        self.close()
        self._lost(reason)
