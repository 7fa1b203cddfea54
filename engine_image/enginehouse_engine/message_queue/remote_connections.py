"""The writer's TCP side: one ROUTER, to which each reader of another node connects a DEALER.

ZMQ alone would drop in silence: at a high-water mark, and on a connection that it makes again. So there is no high-water mark (each
reader's unacknowledged bytes are bounded here instead), no connection is ever made again (the reader does not reconnect, its
successor attaches), and sending to one that is gone is an error (ROUTER_MANDATORY). What is left is TCP: in order, or broken.

Invariant: no reader has more than ``window_bytes`` unacknowledged, but for a single larger message.
Does not wait, and does not decide who is let in.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import zmq

from enginehouse_engine.message_queue.errors import QueueCorrupt
from enginehouse_engine.message_queue.handshake import (
    LARGEST_CONTROL_BYTES,
    Acknowledge,
    Attach,
    Closed,
    Dismissed,
    FromReader,
    Refused,
    Welcome,
    decode_from_reader,
    encode,
)
from enginehouse_engine.message_queue.payload import Buffer

HEARTBEAT_MILLISECONDS: Final = 5_000
HEARTBEAT_TIMEOUT_MILLISECONDS: Final = 15_000
"""A node that is lost says nothing: this is how its end is noticed. ZMQ's own thread does it; ours sleeps."""
LINGER_MILLISECONDS: Final = 1_000
"""What was sent before closing may leave for so long."""


def set_common_options(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MILLISECONDS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MILLISECONDS)
    socket.setsockopt(zmq.LINGER, LINGER_MILLISECONDS)
    socket.setsockopt(zmq.IPV6, 1)


@dataclass(slots=True)
class _RemoteReader:
    routing_id: bytes
    acknowledged: int
    """The newest sequence number that it has copied."""
    outstanding: deque[tuple[int, int]] = field(default_factory=deque)
    """(sequence, bytes) of what it has not."""
    outstanding_bytes: int = 0


class RemoteConnections:
    """Readers of other nodes by name."""

    def __init__(self, *, host: str, window_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        set_common_options(self._router)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.MAXMSGSIZE, LARGEST_CONTROL_BYTES)
        bare = ipaddress.ip_address(host)
        # The kernel picks the port, and keeps it for us: it is published after this and nobody else can have it.
        self._router.bind(f"tcp://[{bare}]:*" if bare.version == 6 else f"tcp://{bare}:*")
        self.endpoint: str = self._router.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        self._readers: dict[str, _RemoteReader] = {}

    def fileno(self) -> int:
        """Readable when :meth:`receive` may have something; call that until it is empty before sleeping on this."""
        return int(self._router.getsockopt(zmq.FD))

    def names(self) -> list[str]:
        return list(self._readers)

    def receive(self) -> tuple[list[tuple[bytes, Attach]], list[tuple[str, str]]]:
        """Everything that has arrived: who wants to attach, and readers that must go, with the reason."""
        attaching: list[tuple[bytes, Attach]] = []
        broken: list[tuple[str, str]] = []
        by_routing_id = {reader.routing_id: name for name, reader in self._readers.items()}
        while True:
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return attaching, broken
            routing_id = frames[0]
            name = by_routing_id.get(routing_id)
            try:
                message = _only_frame(frames[1:])
                if isinstance(message, Attach) and name is None:
                    attaching.append((routing_id, message))
                elif isinstance(message, Acknowledge) and name is not None:
                    _acknowledge(self._readers[name], message.sequence)
                # An acknowledgement of one that was dismissed meanwhile means nothing any more.
                elif name is not None:
                    raise QueueCorrupt(f"an acknowledgement was expected, found {message}")
            except QueueCorrupt as error:
                if name is None:
                    self.refuse(routing_id, str(error))
                else:
                    broken.append((name, str(error)))

    def welcome(self, routing_id: bytes, attach: Attach, welcome: Welcome) -> None:
        if self._send(routing_id, [encode(welcome)]):
            self._readers[attach.reader] = _RemoteReader(routing_id, welcome.first_sequence - 1)

    def refuse(self, routing_id: bytes, reason: str) -> None:
        self._send(routing_id, [encode(Refused(reason=reason[:1024]))])

    def behind(self, message_bytes: int) -> list[str]:
        """Readers that have no room for a message of this size."""
        return [
            name
            for name, reader in self._readers.items()
            if reader.outstanding and reader.outstanding_bytes + message_bytes > self._window_bytes
        ]

    def send(self, sequence: int, header: bytes, frames: Sequence[Buffer]) -> list[str]:
        """Give everybody a message; the names of those that are gone. The frames are copied: their owner may change them after."""
        gone = []
        message = [b"", header, *frames]
        size_bytes = sum(memoryview(frame).nbytes for frame in frames)
        for name, reader in self._readers.items():
            if self._send(reader.routing_id, message):
                reader.outstanding.append((sequence, size_bytes))
                reader.outstanding_bytes += size_bytes
            else:
                gone.append(name)
        return gone

    def dismiss(self, name: str, reason: str) -> None:
        reader = self._readers.pop(name)
        self._send(reader.routing_id, [encode(Dismissed(reason=reason[:1024]))])

    def finish(self) -> None:
        for reader in self._readers.values():
            self._send(reader.routing_id, [encode(Closed())])

    def close(self) -> None:
        self._readers.clear()
        self._router.close()

    def _send(self, routing_id: bytes, frames: list[Buffer]) -> bool:
        """Whether the reader is there."""
        try:
            self._router.send_multipart([routing_id, *frames], zmq.NOBLOCK, copy=True)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True


def _only_frame(frames: list[bytes]) -> FromReader:
    if len(frames) != 1:
        raise QueueCorrupt(f"a control message is one frame, found {len(frames)}")
    return decode_from_reader(frames[0])


def _acknowledge(reader: _RemoteReader, sequence: int) -> None:
    newest = reader.outstanding[-1][0] if reader.outstanding else reader.acknowledged
    if not reader.acknowledged <= sequence <= newest:
        raise QueueCorrupt(f"message {sequence} was acknowledged, of {reader.acknowledged} to {newest}")
    reader.acknowledged = sequence
    while reader.outstanding and reader.outstanding[0][0] <= sequence:
        reader.outstanding_bytes -= reader.outstanding.popleft()[1]
