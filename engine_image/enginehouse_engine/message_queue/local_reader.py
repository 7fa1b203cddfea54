"""A reader on the writer's node: copies records out of the ring.

Invariant: nothing that comes out refers to the ring; nothing is acknowledged before it is copied, nothing believed before it is
known that it was not overwritten meanwhile (a reader that was stopped for too long is let go, and may wake up in the middle of a
copy). Does not write to the ring: its mapping is read-only.
"""

from __future__ import annotations

import os
import select
import socket
import time

from enginehouse_engine.message_queue import ring_layout as layout
from enginehouse_engine.message_queue.address import QueueAddress
from enginehouse_engine.message_queue.errors import QueueClosed, QueueCorrupt, QueueError, ReaderDismissed, WriterGone
from enginehouse_engine.message_queue.handshake import (
    LARGEST_CONTROL_BYTES,
    WELCOME_DESCRIPTORS,
    Dismissed,
    Welcome,
    decode_to_reader,
    first_message,
    welcome_in,
)
from enginehouse_engine.message_queue.memory_order import Fence
from enginehouse_engine.message_queue.payload import IncomingPayload
from enginehouse_engine.message_queue.received import Reader, Received
from enginehouse_engine.message_queue.shared_memory import map_shared
from enginehouse_engine.message_queue.waiting import Signal, SpinBudget, seconds_left
from enginehouse_engine.shared_memory_size import GRANULE_BYTES


def open_local_reader(address: QueueAddress, *, reader: str, generation: int, deadline_seconds: float) -> LocalReader:
    """Attach to a writer on this node as ``reader``, the ``generation``-th process of that name.

    The writer answers in its next call (``send``, ``wait_until_ready``, ``attend``). Raises ReaderRefused with the writer's
    reason, and WriterGone when it is not there, ends, or does not answer in time.
    """
    deadline = time.monotonic() + deadline_seconds
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(deadline_seconds)
    try:
        connection.connect(f"\0{address.local}")
        connection.send(first_message(address, reader=reader, generation=generation))
        connection.settimeout(max(0.001, seconds_left(deadline)))
        data, descriptors, _, _ = socket.recv_fds(connection, LARGEST_CONTROL_BYTES, WELCOME_DESCRIPTORS)
    except TimeoutError as error:
        connection.close()
        raise WriterGone(f"{address} did not answer reader {reader!r} in {deadline_seconds:g} s") from error
    except OSError as error:
        connection.close()
        raise WriterGone(f"reader {reader!r} cannot reach {address}: {error}") from error
    try:
        if not data:
            raise WriterGone(f"{address} ended while reader {reader!r} attached")
        welcome = welcome_in(data, address=address, reader=reader)
        if len(descriptors) != WELCOME_DESCRIPTORS:
            raise QueueCorrupt(f"{address} sent {len(descriptors)} descriptors with its welcome, wanted {WELCOME_DESCRIPTORS}")
        return LocalReader(address, reader, welcome, connection, descriptors)
    except BaseException:
        connection.close()
        for descriptor in descriptors:
            os.close(descriptor)
        raise


class LocalReader(Reader):
    """See :class:`Reader`. Made by :func:`open_local_reader`."""

    def __init__(
        self, address: QueueAddress, reader: str, welcome: Welcome, connection: socket.socket, descriptors: list[int]
    ) -> None:
        ring, page, own_signal, writer_signal = descriptors
        super().__init__(address, name=reader, signal=Signal(own_signal))
        self.first_sequence = welcome.first_sequence
        self._connection = connection
        connection.setblocking(False)
        self._ring_bytes = welcome.ring_bytes
        self._mapping = map_shared(ring, GRANULE_BYTES + welcome.ring_bytes, writable=False)
        self._page_mapping = map_shared(page, GRANULE_BYTES, writable=True)
        os.close(ring)
        os.close(page)
        self._whole = memoryview(self._mapping)
        self._counters = self._whole[: layout.COUNTERS_BYTES].cast("Q")
        self._records = self._whole[GRANULE_BYTES:]
        self._words = memoryview(self._page_mapping)[: layout.COUNTERS_BYTES].cast("Q")
        self._writer_signal = Signal(writer_signal)
        self._epoll = select.epoll()
        self._epoll.register(own_signal, select.EPOLLIN)
        self._epoll.register(connection, select.EPOLLIN)
        self._fence = Fence().full
        self._spin = SpinBudget()
        self._tag = address.tag
        self._position = welcome.position
        self._next_sequence = welcome.first_sequence
        self._incoming: IncomingPayload | None = None
        self._announced = False
        """The writer was asked to signal, and what it then signalled is not taken back yet."""
        self._closed = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._mark_closed()
        self._connection.close()
        self._epoll.close()
        for view in (self._counters, self._records, self._whole, self._words):
            view.release()
        self._mapping.close()
        self._page_mapping.close()
        self._signal.close()
        self._writer_signal.close()

    def _next(self, deadline: float, *, spin: bool) -> Received | None:
        while True:
            self._check_not_cancelled()
            if self._counters[layout.PUBLISHED] == self._position and not (spin and self._found_spinning()):
                if not self._sleep(deadline):
                    return None
            elif self._announced:
                self._end_sleep()
            message = self._take_record()
            if message is not None:
                return message

    def _found_spinning(self) -> bool:
        """Whether a record came within a spin."""
        counters, position, now = self._counters, self._position, time.monotonic
        spin_seconds = self._spin.seconds()
        if spin_seconds:
            spin_until = now() + spin_seconds
            while now() < spin_until:
                if counters[layout.PUBLISHED] != position:
                    self._spin.found()
                    if self._announced:
                        self._end_sleep()
                    return True
            self._spin.missed()
        return False

    def _sleep(self, deadline: float) -> bool:
        """Sleep until there is a record. False at the deadline; the writer is then still asked to signal."""
        counters, position = self._counters, self._position
        while True:
            self._words[layout.SLEEPING] = 1
            self._announced = True
            self._fence()
            events: list[tuple[int, int]] = []
            if counters[layout.PUBLISHED] == position and not counters[layout.CLOSED] and not self._cancelled:
                events = self._epoll.poll(seconds_left(deadline))
                if not events and time.monotonic() >= deadline:
                    return False
            self._end_sleep()
            self._check_not_cancelled()
            closed = counters[layout.CLOSED]
            self._fence()  # Whoever sees that the queue is closed sees all that was published before.
            if counters[layout.PUBLISHED] != position:
                return True
            if self._words[layout.DISMISSED]:
                raise self._dismissed()
            if closed:
                raise QueueClosed(f"{self.address} was closed after message {self._next_sequence - 1}")
            if any(descriptor == self._connection.fileno() for descriptor, _ in events):
                raise self._writer_ended()

    def _end_sleep(self) -> None:
        self._announced = False
        self._words[layout.SLEEPING] = 0
        self._signal.take()

    def _take_record(self) -> Received | None:
        """Copy one record; the message if that completes one."""
        self._fence()  # The word that published the record before the record.
        try:
            finished = self._copy_record(self._counters[layout.PUBLISHED] - self._position)
        except QueueCorrupt:
            self._fence()
            if self._words[layout.DISMISSED]:
                raise self._dismissed() from None
            raise
        self._fence()  # The copy before the look whether the writer gave us up, and before the word that frees the record.
        if self._words[layout.DISMISSED]:
            raise self._dismissed()
        self._words[layout.ACKNOWLEDGED] = self._position
        self._fence()  # The word before the look whether the writer sleeps for it.
        wanted = self._counters[layout.WANTED]
        if 0 < wanted <= self._position:
            self._writer_signal.set()
        if not finished or self._incoming is None:
            return None
        header, frames = self._incoming.header, self._incoming.frames()
        self._incoming = None
        self._next_sequence += 1
        return Received(self.address, header.sequence, header.correlation, frames)

    def _copy_record(self, available_bytes: int) -> bool:
        """Copy the record at our position and step over it; whether its message is complete. Raises QueueCorrupt."""
        start = self._position % self._ring_bytes
        header = layout.unpack_header(self._records, start, tag=self._tag)
        size_bytes = layout.record_bytes(header.fragment_bytes)
        if size_bytes > available_bytes or available_bytes > self._ring_bytes:
            raise QueueCorrupt(f"a record of {size_bytes} bytes in {available_bytes} published ones")
        if header.sequence != self._next_sequence:
            raise QueueCorrupt(f"message {self._next_sequence} of {self.address} was expected, found {header.sequence}")
        if header.offset == 0:
            # A message that its writer gave up halfway is followed by another one with its number.
            self._incoming = IncomingPayload(header)
        incoming = self._incoming
        if incoming is None or header.offset != incoming.received_bytes or header.total_bytes != incoming.header.total_bytes:
            raise QueueCorrupt(f"a fragment that continues nothing: {header}")
        start = (start + layout.RECORD_ALIGNMENT_BYTES) % self._ring_bytes
        end = start + header.fragment_bytes
        if end <= self._ring_bytes:
            incoming.add(self._records[start:end])
        else:
            incoming.add(self._records[start:])
            incoming.add(self._records[: end - self._ring_bytes])
        self._position += size_bytes
        return incoming.is_complete()

    def _writer_ended(self) -> QueueError:
        try:
            data = self._connection.recv(LARGEST_CONTROL_BYTES)
        except OSError:
            data = b""
        if not data:
            return WriterGone(f"{self.address} ended without closing, after message {self._next_sequence - 1}")
        answer = decode_to_reader(data)
        reason = answer.reason if isinstance(answer, Dismissed) else f"found {answer}"
        return ReaderDismissed(f"reader {self._name!r} was dismissed by {self.address}: {reason}")

    def _dismissed(self) -> QueueError:
        """With the writer's reason, which it sends before it marks the page."""
        return self._writer_ended()
