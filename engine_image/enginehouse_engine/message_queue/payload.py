"""A message's bytes on their way: frames to pieces of any size (writer), pieces to frames (reader).

Invariant: what comes out owns its memory: each frame is a ``bytearray`` of its own that nothing else refers to, copied once.
Does not know where the pieces lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from enginehouse_engine.message_queue.errors import MessageTooLarge, QueueCorrupt
from enginehouse_engine.message_queue.ring_layout import (
    LARGEST_MESSAGE_BYTES,
    TABLE_ENTRY_BYTES,
    MessageHeader,
    frame_lengths,
    frame_table,
    payload_bytes,
)

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What a frame may be; a memoryview must be contiguous."""


class OutgoingPayload:
    """The payload of one message, copied out front to back. Raises MessageTooLarge."""

    def __init__(self, frames: Sequence[Buffer]) -> None:
        views = [_flat(frame) for frame in frames]
        lengths = [len(view) for view in views]
        table = frame_table(lengths)
        self.frame_count = len(views)
        self.total_bytes = payload_bytes(lengths)
        if self.total_bytes > LARGEST_MESSAGE_BYTES:
            raise MessageTooLarge(f"a message has at most {LARGEST_MESSAGE_BYTES} bytes, found {self.total_bytes}")
        self._parts = [memoryview(table), *views] if table else views
        self._part = 0
        self._taken = 0

    def copy_into(self, target: memoryview) -> None:
        """Fill the target with the next bytes; there must be as many."""
        filled = 0
        while filled < len(target):
            part = self._parts[self._part]
            count = min(len(target) - filled, len(part) - self._taken)
            target[filled : filled + count] = part[self._taken : self._taken + count]
            filled += count
            self._taken += count
            if self._taken == len(part):
                self._part += 1
                self._taken = 0


class IncomingPayload:
    """The payload of one message, given in pieces, the frames' table wholly in the first ones. Raises QueueCorrupt."""

    def __init__(self, header: MessageHeader) -> None:
        self.header = header
        self.received_bytes = 0
        self._table = bytearray()
        self._table_bytes = 0 if header.frame_count == 1 else header.frame_count * TABLE_ENTRY_BYTES
        self._lengths = [header.total_bytes] if header.frame_count == 1 else []
        self._frames: list[bytearray] = []
        self._filled = 0
        """Bytes of the last frame that are there; a frame in the list may still be growing."""

    def add(self, piece: memoryview) -> None:
        if self.received_bytes + len(piece) > self.header.total_bytes:
            raise QueueCorrupt(f"more than the {self.header.total_bytes} bytes that were announced")
        self.received_bytes += len(piece)
        missing_table = self._table_bytes - len(self._table)
        if missing_table > 0:
            self._table += piece[:missing_table]
            piece = piece[missing_table:]
            if len(self._table) < self._table_bytes:
                return
            self._lengths = frame_lengths(self._table, self.header)
        while len(piece) > 0:
            piece = self._add_to_frames(piece)

    def is_complete(self) -> bool:
        return self.received_bytes == self.header.total_bytes

    def frames(self) -> list[bytearray]:
        """All of them; the payload must be complete."""
        while len(self._frames) < len(self._lengths):
            self._frames.append(bytearray())  # Only empty frames can be left.
        return self._frames

    def _add_to_frames(self, piece: memoryview) -> memoryview:
        """Take what belongs to one frame; what is left of the piece."""
        if self._frames and self._filled < len(self._frames[-1]):
            frame = self._frames[-1]
            count = min(len(piece), len(frame) - self._filled)
            frame[self._filled : self._filled + count] = piece[:count]
            self._filled += count
            return piece[count:]
        length = self._lengths[len(self._frames)]
        if length <= len(piece):
            self._frames.append(bytearray(piece[:length]))
            self._filled = length
            return piece[length:]
        self._frames.append(bytearray(length))
        self._filled = 0
        return piece


def _flat(frame: Buffer) -> memoryview:
    view = memoryview(frame)
    if view.nbytes == 0:
        return memoryview(b"")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
