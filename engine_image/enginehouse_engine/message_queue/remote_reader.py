"""A reader on another node: whole messages over TCP, each acknowledged once it is copied.

Invariant: a connection that breaks ends this reader; nothing is received again or left out behind its back.
Does not spin: a network is slower than a sleep.
"""

from __future__ import annotations

import contextlib
import select
import struct
import time
from typing import Final

import zmq

from enginehouse_engine.message_queue.address import QueueAddress
from enginehouse_engine.message_queue.errors import QueueClosed, QueueCorrupt, ReaderDismissed, ReaderRefused, WriterGone
from enginehouse_engine.message_queue.handshake import (
    Acknowledge,
    Closed,
    Dismissed,
    decode_to_reader,
    encode,
    first_message,
    welcome_in,
)
from enginehouse_engine.message_queue.received import Reader, Received
from enginehouse_engine.message_queue.remote_connections import set_common_options
from enginehouse_engine.message_queue.ring_layout import LARGEST_MESSAGE_BYTES, MOST_FRAMES, payload_bytes, unpack_header
from enginehouse_engine.message_queue.waiting import Signal, seconds_left

_NEVER_MILLISECONDS: Final = 24 * 3600 * 1000
"""Before a broken connection would be made again; this reader has ended long before. Forbidding it altogether (-1) would make ZMQ
throw away what it has received and not yet handed out when the writer ends."""


def open_remote_reader(address: QueueAddress, *, reader: str, generation: int, deadline_seconds: float) -> RemoteReader:
    """Attach over TCP as ``reader``, the ``generation``-th process of that name.

    The writer answers in its next call. Raises ReaderRefused with the writer's reason, and WriterGone when it cannot be reached
    or does not answer in time.
    """
    if not address.remote:
        raise ReaderRefused(f"{address} has no readers on other nodes")
    remote = RemoteReader(address, reader)
    try:
        remote.attach(generation, deadline_seconds=deadline_seconds)
    except BaseException:
        remote.close()
        raise
    return remote


class RemoteReader(Reader):
    """See :class:`Reader`. Made by :func:`open_remote_reader`."""

    def __init__(self, address: QueueAddress, reader: str) -> None:
        super().__init__(address, name=reader, signal=Signal())
        self.first_sequence = 0
        self._tag = address.tag
        self._next_sequence = 0
        self._broken = False
        self._dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        set_common_options(self._dealer)
        self._dealer.setsockopt(zmq.RECONNECT_IVL, _NEVER_MILLISECONDS)
        self._dealer.setsockopt(zmq.MAXMSGSIZE, LARGEST_MESSAGE_BYTES)
        self._monitor: zmq.Socket[bytes] = self._dealer.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        # ZMQ's descriptors tell news once, to whoever has looked until there was nothing: so does `_next_frames` before it sleeps.
        self._epoll = select.epoll()
        for descriptor in (self._dealer.fileno(), self._monitor.fileno(), self._signal.descriptor):
            self._epoll.register(descriptor, select.EPOLLIN)

    def attach(self, generation: int, *, deadline_seconds: float) -> None:
        """Once, by :func:`open_remote_reader`."""
        deadline = time.monotonic() + deadline_seconds
        self._dealer.connect(self.address.remote)
        self._dealer.send(first_message(self.address, reader=self._name, generation=generation), zmq.NOBLOCK)
        try:
            frames = self._next_frames(deadline)
        except WriterGone as error:
            raise WriterGone(f"reader {self._name!r} cannot reach {self.address} at {self.address.remote}") from error
        if frames is None:
            raise WriterGone(f"{self.address} did not answer reader {self._name!r} in {deadline_seconds:g} s")
        welcome = welcome_in(frames[0].bytes, address=self.address, reader=self._name)
        self.first_sequence = self._next_sequence = welcome.first_sequence

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        if self._dealer.closed:
            return
        self._mark_closed()
        self._epoll.close()
        self._dealer.disable_monitor()
        self._monitor.close(linger=0)
        self._dealer.close()
        self._signal.close()

    def _next(self, deadline: float, *, spin: bool) -> Received | None:
        frames = self._next_frames(deadline)
        if frames is None:
            return None
        return self._message(frames) if len(frames) > 1 else self._end(frames[0].bytes)

    def _next_frames(self, deadline: float) -> list[zmq.Frame] | None:
        while True:
            self._check_not_cancelled()
            # Looked at first: what came before the break is then still found.
            broken = self._is_broken()
            try:
                return self._dealer.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                pass
            if broken:
                raise WriterGone(f"the connection to {self.address} broke after message {self._next_sequence - 1}")
            if not self._epoll.poll(seconds_left(deadline)) and time.monotonic() >= deadline:
                return None
            self._signal.take()

    def _is_broken(self) -> bool:
        with contextlib.suppress(zmq.Again):
            self._monitor.recv_multipart(zmq.NOBLOCK)
            self._broken = True
        return self._broken

    def _message(self, frames: list[zmq.Frame]) -> Received:
        if len(frames) > MOST_FRAMES + 2 or frames[0].bytes:
            raise QueueCorrupt(f"a message of {self.address} starts with an empty frame, found {len(frames)} others")
        try:
            header = unpack_header(frames[1].bytes, 0, tag=self._tag)
        except struct.error as error:
            raise QueueCorrupt(f"undecodable header of {len(frames[1])} bytes: {error}") from error
        if header.sequence != self._next_sequence:
            raise QueueCorrupt(f"message {self._next_sequence} of {self.address} was expected, found {header.sequence}")
        # Copied out of ZMQ's memory, so that the frames are the reader's own on both transports.
        owned = [bytearray(frame.buffer) for frame in frames[2:]]
        found = (len(owned), payload_bytes([len(frame) for frame in owned]))
        if found != (header.frame_count, header.total_bytes):
            raise QueueCorrupt(
                f"message {header.sequence} has {header.frame_count} frames in {header.total_bytes} bytes, "
                f"found {found[0]} in {found[1]}"
            )
        self._next_sequence += 1
        with contextlib.suppress(zmq.Again):  # The connection broke meanwhile: the next call finds that.
            self._dealer.send(encode(Acknowledge(sequence=header.sequence)), zmq.NOBLOCK)
        return Received(self.address, header.sequence, header.correlation, owned)

    def _end(self, data: bytes) -> Received:
        answer = decode_to_reader(data)
        if isinstance(answer, Closed):
            raise QueueClosed(f"{self.address} was closed after message {self._next_sequence - 1}")
        if isinstance(answer, Dismissed):
            raise ReaderDismissed(f"reader {self._name!r} was dismissed by {self.address}: {answer.reason}")
        raise QueueCorrupt(f"{self.address} said {answer} to a reader that is attached")
