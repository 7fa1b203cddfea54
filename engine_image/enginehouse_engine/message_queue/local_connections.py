"""The writer's UNIX socket: readers of this node come, say who they are, and stay connected until one side ends.

The socket is abstract: it has no file, is gone with the process, and is visible in the pod's network namespace; so the peer's
user is checked, and the reader must know the queue's key. Nothing here blocks.

Invariant: every connection is watched by the given epoll until it is closed, but while its attach waits for an answer.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
from typing import Final

from enginehouse_engine.message_queue.errors import QueueCorrupt
from enginehouse_engine.message_queue.handshake import (
    LARGEST_CONTROL_BYTES,
    Attach,
    Dismissed,
    Refused,
    Welcome,
    decode_from_reader,
    encode,
)

MOST_STRANGERS: Final = 64
"""Connections that have not said who they are; one more is turned away."""
_CREDENTIALS: Final = struct.Struct("iII")


class LocalConnections:
    """Connections by descriptor: strangers first, readers by name once admitted."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.name = f"enginehouse-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(f"\0{self.name}")
        self._listener.listen(MOST_STRANGERS)
        epoll.register(self._listener, select.EPOLLIN)
        self._strangers: dict[int, socket.socket] = {}
        self._readers: dict[int, str] = {}
        self._connections: dict[str, socket.socket] = {}

    def handle(self, descriptor: int) -> tuple[list[tuple[int, Attach]], list[str]]:
        """What an event on this descriptor brought: strangers that want to attach, readers that are gone."""
        if descriptor == self._listener.fileno():
            self._accept()
        elif descriptor in self._strangers:
            attach = self._introduction(descriptor)
            return ([(descriptor, attach)] if attach else []), []
        elif descriptor in self._readers:
            # A reader says nothing after its attach: whatever can be read is its end.
            return [], [self._readers[descriptor]]
        return [], []

    def welcome(self, descriptor: int, attach: Attach, welcome: Welcome, descriptors: list[int]) -> None:
        """Make a stranger a reader. One that is gone meanwhile shows that with its next event."""
        connection = self._strangers.pop(descriptor)
        self._readers[descriptor] = attach.reader
        self._connections[attach.reader] = connection
        self._epoll.register(descriptor, select.EPOLLIN)
        try:
            socket.send_fds(connection, [encode(welcome)], descriptors)
        except OSError:
            return  # Gone already: end of file follows.

    def refuse(self, descriptor: int, reason: str) -> None:
        connection = self._strangers.pop(descriptor)
        _send(connection, encode(Refused(reason=reason)))
        connection.close()

    def say_dismissed(self, reader: str, reason: str) -> None:
        """Before the reader's page is marked."""
        _send(self._connections[reader], encode(Dismissed(reason=reason[:1024])))

    def drop(self, reader: str) -> None:
        connection = self._connections.pop(reader)
        del self._readers[connection.fileno()]
        self._epoll.unregister(connection)
        connection.close()

    def close(self) -> None:
        for connection in [*self._strangers.values(), *self._connections.values(), self._listener]:
            connection.close()  # Which takes it out of the epoll: nobody else has the descriptor.
        self._strangers.clear()
        self._readers.clear()
        self._connections.clear()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                continue  # It gave up between knocking and being let in.
            connection.setblocking(False)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            user = _CREDENTIALS.unpack(credentials)[1]
            if user != os.geteuid() or len(self._strangers) >= MOST_STRANGERS:
                connection.close()
                continue
            self._strangers[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLIN)

    def _introduction(self, descriptor: int) -> Attach | None:
        connection = self._strangers[descriptor]
        try:
            data = connection.recv(LARGEST_CONTROL_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        reason = ""
        if data:
            try:
                message = decode_from_reader(data)
            except QueueCorrupt as error:
                reason = str(error)
            else:
                if isinstance(message, Attach):
                    self._epoll.unregister(descriptor)  # Not looked at again until it is answered.
                    return message
                reason = f"an attach was expected, found {message}"
        self._epoll.unregister(descriptor)
        del self._strangers[descriptor]
        if reason:
            _send(connection, encode(Refused(reason=reason)))
        connection.close()
        return None


def _send(connection: socket.socket, data: bytes) -> None:
    try:
        connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return  # Gone, or so far behind that it does not read: the end of file tells it as well.
