"""The writing side of the ring: records in, room accounted by who has acknowledged what.

Invariant: nothing is overwritten that an attached reader has not acknowledged; a reader that is let go is marked in its page
before its part is overwritten. Fences are argued in ``memory_order.py`` and ``waiting.py``. Does not wait, and does not know
sockets.
"""

from __future__ import annotations

import os

from enginehouse_engine.message_queue import ring_layout as layout
from enginehouse_engine.message_queue.errors import QueueCorrupt
from enginehouse_engine.message_queue.memory_order import Fence
from enginehouse_engine.message_queue.payload import OutgoingPayload
from enginehouse_engine.message_queue.ring_layout import MessageHeader
from enginehouse_engine.message_queue.shared_memory import allocate, map_shared, reopen_read_only
from enginehouse_engine.message_queue.waiting import Signal
from enginehouse_engine.shared_memory_size import GRANULE_BYTES, round_up_to_granule


class ImpossibleAcknowledgement(QueueCorrupt):
    """A reader's page says what cannot be."""

    def __init__(self, reader: str, what: str) -> None:
        super().__init__(f"reader {reader!r} {what}")
        self.reader = reader


class ReaderPage:
    """One reader's page, as the writer has it, and the signal that wakes the reader."""

    def __init__(self, *, position: int, reader: str) -> None:
        self.descriptor = allocate(GRANULE_BYTES, purpose=f"the page of reader {reader!r}")
        self._mapping = map_shared(self.descriptor, GRANULE_BYTES, writable=True)
        self.words = memoryview(self._mapping)[: layout.COUNTERS_BYTES].cast("Q")
        self.words[layout.ACKNOWLEDGED] = position
        self.acknowledged = position
        """As last read: positions only grow."""
        self.signal = Signal()

    def close(self) -> None:
        self.words.release()
        self._mapping.close()
        os.close(self.descriptor)
        self.signal.close()


class RingWriter:
    """The ring's memory and its counters. ``readers`` holds a page for each attached reader."""

    def __init__(self, *, ring_bytes: int, purpose: str) -> None:
        if ring_bytes < layout.SMALLEST_RING_BYTES:
            raise ValueError(f"a ring has at least {layout.SMALLEST_RING_BYTES} bytes, found {ring_bytes}")
        self.ring_bytes = round_up_to_granule(ring_bytes)
        self.largest_fragment_bytes = layout.largest_fragment_bytes(self.ring_bytes)
        size_bytes = GRANULE_BYTES + self.ring_bytes
        descriptor = allocate(size_bytes, purpose=purpose)
        try:
            self._mapping = map_shared(descriptor, size_bytes, writable=True)
            self.read_only_descriptor = reopen_read_only(descriptor)
        finally:
            os.close(descriptor)
        self._whole = memoryview(self._mapping)
        self._counters = self._whole[: layout.COUNTERS_BYTES].cast("Q")
        self._records = self._whole[GRANULE_BYTES:]
        self._fence = Fence().full
        self.position = 0
        self.readers: dict[str, ReaderPage] = {}

    def attach(self, reader: str) -> ReaderPage:
        """A page for a reader that gets everything from here on. Raises SharedMemoryTooSmall."""
        page = ReaderPage(position=self.position, reader=reader)
        self.readers[reader] = page
        return page

    def detach(self, reader: str) -> None:
        """Wait for this reader no more; it learns that before anything it has not read is overwritten."""
        page = self.readers.pop(reader)
        page.words[layout.DISMISSED] = 1
        self._fence()
        page.signal.set()
        page.close()

    def has_room(self, wanted_bytes: int) -> bool:
        """Whether a record of this size can be written. Raises ImpossibleAcknowledgement."""
        needed = self.position + wanted_bytes - self.ring_bytes
        return all(page.acknowledged >= needed or self._acknowledged(name, page) >= needed for name, page in self.readers.items())

    def behind(self, wanted_bytes: int) -> list[str]:
        """The readers that stand in the way of a record of this size."""
        needed = self.position + wanted_bytes - self.ring_bytes
        return [name for name, page in self.readers.items() if page.acknowledged < needed]

    def announce_sleep(self, wanted_bytes: int) -> None:
        """Have whoever makes this room signal. Look again with :meth:`has_room` afterwards, then sleep."""
        self._counters[layout.WANTED] = max(1, self.position + wanted_bytes - self.ring_bytes)
        self._fence()

    def end_sleep(self) -> None:
        self._counters[layout.WANTED] = 0

    def write(self, header: MessageHeader, payload: OutgoingPayload) -> None:
        """Copy one record and publish it; there must be room. Wakes the readers that sleep."""
        start = self.position % self.ring_bytes
        records = self._records
        records[start : start + layout.HEADER_BYTES] = header.pack()
        start = (start + layout.RECORD_ALIGNMENT_BYTES) % self.ring_bytes
        end = start + header.fragment_bytes
        if end <= self.ring_bytes:
            payload.copy_into(records[start:end])
        else:
            payload.copy_into(records[start:])
            payload.copy_into(records[: end - self.ring_bytes])
        self.position += layout.record_bytes(header.fragment_bytes)
        self._fence()  # The record before the word that publishes it.
        self._counters[layout.PUBLISHED] = self.position
        self._wake()

    def finish(self) -> None:
        """Tell the readers that nothing more comes."""
        self._counters[layout.CLOSED] = 1
        self._wake()

    def close(self) -> None:
        """Release the writer's side; readers keep what they have mapped."""
        for page in self.readers.values():
            page.close()
        self.readers.clear()
        for view in (self._counters, self._records, self._whole):
            view.release()
        self._mapping.close()
        os.close(self.read_only_descriptor)

    def _wake(self) -> None:
        self._fence()  # What was published before the look at who sleeps.
        for page in self.readers.values():
            if page.words[layout.SLEEPING]:
                page.words[layout.SLEEPING] = 0
                page.signal.set()

    def _acknowledged(self, name: str, page: ReaderPage) -> int:
        acknowledged = page.words[layout.ACKNOWLEDGED]
        if not page.acknowledged <= acknowledged <= self.position:
            raise ImpossibleAcknowledgement(name, f"acknowledges {acknowledged} of {page.acknowledged} to {self.position}")
        page.acknowledged = acknowledged
        self._fence()  # The reader's copying, which its word says is done, before what will be written there.
        return acknowledged
