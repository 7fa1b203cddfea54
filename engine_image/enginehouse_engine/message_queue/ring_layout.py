"""Where things lie in a ring, and how a message's header is written: the same header on both transports.

A ring is a file of ``GRANULE_BYTES`` of counters (the writer's) and then ``ring_bytes`` of records; each reader on the node has a
page of its own. A reader maps the ring read-only, so it can spoil nobody's but its own page.

A record starts at a multiple of ``RECORD_ALIGNMENT_BYTES`` (so its header is never split by the end of the ring), holds
one message or, of a message that is larger than a quarter of the ring, one fragment. Positions count bytes ever written and only
grow; the place in the ring is the position modulo its size.

A message's payload is its only frame, or, with any other number of frames, a table of their lengths (8 bytes each) and
then the frames.

Invariant: a header that was read is checked before any length in it is used. Does not touch memory or files.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from enginehouse_engine.message_queue.errors import MessageTooLarge, QueueCorrupt

# Words (of 8 bytes) in the writer's counters, each in a cache line of its own.
PUBLISHED: Final = 0
"""Position up to which records are complete."""
WANTED: Final = 8
"""Position that the writer sleeps for; 0 while it does not sleep. A reader that reaches it wakes the writer."""
CLOSED: Final = 16
"""1 once nothing more will come."""

# Words in a reader's page.
ACKNOWLEDGED: Final = 0
"""Position up to which the reader has copied everything. The reader's."""
SLEEPING: Final = 8
"""1 while the reader sleeps or is about to. The writer clears it *before* it signals: what that overwrites is then signalled."""
DISMISSED: Final = 16
"""1 before the writer overwrites what this reader has not acknowledged. The writer's."""

COUNTERS_BYTES: Final = 24 * 8

RECORD_ALIGNMENT_BYTES: Final = 64
SMALLEST_RING_BYTES: Final = 64 * 1024
LARGEST_MESSAGE_BYTES: Final = 1 << 30
MOST_FRAMES: Final = 1024

_HEADER: Final = struct.Struct("<8sQQQQQI4x")
HEADER_BYTES: Final = _HEADER.size
_LENGTH: Final = struct.Struct("<Q")
TABLE_ENTRY_BYTES: Final = _LENGTH.size


class MessageHeader(NamedTuple):
    """Before each message on the wire, and each fragment in the ring."""

    tag: bytes
    """8 bytes that only this writer's generation of this queue uses: its identity in every message."""
    sequence: int
    """From 1, one more with each message of the queue."""
    correlation: int
    """What the sender gave; 0 = none."""
    total_bytes: int
    """The message's payload."""
    offset: int
    """Where in the payload this fragment starts."""
    fragment_bytes: int
    frame_count: int

    def pack(self) -> bytes:
        return _HEADER.pack(*self)


def unpack_header(buffer: bytes | bytearray | memoryview, offset: int, *, tag: bytes) -> MessageHeader:
    """The header at ``offset``. Raises QueueCorrupt when it is not one of this queue, or its lengths contradict each other."""
    header = MessageHeader(*_HEADER.unpack_from(buffer, offset))
    if header.tag != tag:
        raise QueueCorrupt(f"a record of writer {tag.hex()} was expected, found {header.tag.hex()}")
    if (
        header.total_bytes > LARGEST_MESSAGE_BYTES
        or header.frame_count > MOST_FRAMES
        or header.offset + header.fragment_bytes > header.total_bytes
        or (header.frame_count != 1 and header.total_bytes < header.frame_count * TABLE_ENTRY_BYTES)
    ):
        raise QueueCorrupt(f"impossible lengths in {header}")
    return header


def record_bytes(fragment_bytes: int) -> int:
    """What a fragment takes in the ring."""
    return RECORD_ALIGNMENT_BYTES + -(-fragment_bytes // RECORD_ALIGNMENT_BYTES) * RECORD_ALIGNMENT_BYTES


def largest_fragment_bytes(ring_bytes: int) -> int:
    """A message up to this size is one record; larger ones stream through the ring while they are written."""
    return ring_bytes // 4 - RECORD_ALIGNMENT_BYTES


def payload_bytes(lengths: list[int]) -> int:
    """The payload of frames of these lengths, with their table."""
    return sum(lengths) + (0 if len(lengths) == 1 else len(lengths) * TABLE_ENTRY_BYTES)


def frame_table(lengths: list[int]) -> bytes:
    """What precedes the frames in the payload: nothing for one frame. Raises MessageTooLarge."""
    if len(lengths) == 1:
        return b""
    if len(lengths) > MOST_FRAMES:
        raise MessageTooLarge(f"a message has at most {MOST_FRAMES} frames, found {len(lengths)}")
    return b"".join(map(_LENGTH.pack, lengths))


def frame_lengths(payload_start: bytes | bytearray | memoryview, header: MessageHeader) -> list[int]:
    """The frames' lengths, from the payload's first bytes. Raises QueueCorrupt when they do not add up."""
    if header.frame_count == 1:
        return [header.total_bytes]
    table_bytes = header.frame_count * TABLE_ENTRY_BYTES
    if len(payload_start) < table_bytes:
        raise QueueCorrupt(f"a table of {header.frame_count} frames was expected, found {len(payload_start)} bytes")
    lengths = [length for (length,) in _LENGTH.iter_unpack(payload_start[:table_bytes])]
    if table_bytes + sum(lengths) != header.total_bytes:
        raise QueueCorrupt(f"frames of {sum(lengths)} bytes do not make a message of {header.total_bytes}")
    return lengths
