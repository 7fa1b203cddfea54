"""JSON objects and descriptors over a UNIX ``SOCK_SEQPACKET`` socket. Never blocks.

Invariant: received descriptors are close-on-exec and never leak, also when the message is refused.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_MESSAGE_BYTES: Final = 64 * 1024
_MOST_DESCRIPTORS: Final = 4


class Closed(Exception):
    """The other side closed the socket, or does not read what it is sent."""


@dataclass(frozen=True)
class Datagram:
    """What arrived. Whoever takes it owns the descriptors."""

    data: bytes
    descriptors: tuple[int, ...] = ()


def send(connection: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one message. Raises Closed, also when the buffer is full: a reader that does not read is as good as gone."""
    data = json.dumps(message).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        connection.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError as error:
        raise Closed(f"message {message['type']!r} was not sent: {error}") from error


def receive(connection: socket.socket) -> Datagram | None:
    """The next message, or None when there is none now. Raises Closed."""
    try:
        data, ancillary, flags, _ = connection.recvmsg(
            MAX_MESSAGE_BYTES,
            socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize),
            socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
        )
    except BlockingIOError:
        return None
    except ConnectionResetError:
        # The other side left without reading something of ours; what it sent before is still in the queue.
        return receive(connection)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    if not data:
        close_all(descriptors)
        raise Closed("the other side closed the socket")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(descriptors)
        raise Closed(f"a message has more than {MAX_MESSAGE_BYTES} bytes or {_MOST_DESCRIPTORS} descriptors")
    return Datagram(data=data, descriptors=tuple(descriptors))


def close_all(descriptors: Sequence[int]) -> None:
    """Give descriptors back that nobody took."""
    for descriptor in descriptors:
        os.close(descriptor)
