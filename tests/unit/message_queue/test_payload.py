"""Headers, frames and the size formula: what goes in comes out, and what cannot be is refused before it is used."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine.message_queue import ring_layout as layout
from enginehouse_engine.message_queue.errors import MessageTooLarge, QueueCorrupt
from enginehouse_engine.message_queue.payload import IncomingPayload, OutgoingPayload
from enginehouse_engine.message_queue.ring_layout import MessageHeader, record_bytes, unpack_header
from enginehouse_engine.message_queue.ring_writer import RingWriter
from enginehouse_engine.shared_memory_size import (
    GRANULE_BYTES,
    rank_shared_memory_bytes,
    round_up_to_granule,
    shared_memory_bytes,
)

TAG = b"12345678"


def header(**changed: int) -> MessageHeader:
    values = {"sequence": 1, "correlation": 2, "total_bytes": 100, "offset": 0, "fragment_bytes": 100, "frame_count": 1}
    return MessageHeader(TAG, **{**values, **changed})


@given(st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(1, 200), max_size=40))
def test_frames_survive_any_cutting(frames: list[bytes], cuts: list[int]) -> None:
    outgoing = OutgoingPayload(frames)
    total_bytes = outgoing.total_bytes
    incoming = IncomingPayload(header(total_bytes=total_bytes, fragment_bytes=total_bytes, frame_count=len(frames)))
    left = total_bytes
    for cut in [*cuts, total_bytes]:
        piece = bytearray(min(cut, left))
        outgoing.copy_into(memoryview(piece))
        incoming.add(memoryview(piece))
        left -= len(piece)
    assert incoming.is_complete()
    assert incoming.frames() == frames


@given(st.binary(min_size=layout.HEADER_BYTES, max_size=layout.HEADER_BYTES))
def test_a_header_of_random_bytes_is_refused_or_harmless(data: bytes) -> None:
    try:
        found = unpack_header(TAG + data[8:], 0, tag=TAG)
    except QueueCorrupt:
        return
    assert found.offset + found.fragment_bytes <= found.total_bytes <= layout.LARGEST_MESSAGE_BYTES
    assert found.frame_count <= layout.MOST_FRAMES


@pytest.mark.parametrize(
    "bad",
    [
        header(total_bytes=layout.LARGEST_MESSAGE_BYTES + 1),
        header(frame_count=layout.MOST_FRAMES + 1, total_bytes=1 << 20),
        header(offset=1),
        header(fragment_bytes=101),
        header(frame_count=13),
        header()._replace(tag=b"another!"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(bad: MessageHeader) -> None:
    assert unpack_header(header().pack(), 0, tag=TAG) == header()
    with pytest.raises(QueueCorrupt):
        unpack_header(bad.pack(), 0, tag=TAG)


def test_a_table_that_does_not_add_up_is_refused() -> None:
    incoming = IncomingPayload(header(total_bytes=20, fragment_bytes=20, frame_count=2))
    with pytest.raises(QueueCorrupt, match="do not make a message of 20"):
        incoming.add(memoryview((2).to_bytes(8, "little") + (3).to_bytes(8, "little") + b"abcd"))


def test_more_bytes_than_announced_are_refused() -> None:
    incoming = IncomingPayload(header(total_bytes=3, fragment_bytes=3))
    with pytest.raises(QueueCorrupt, match="more than the 3 bytes"):
        incoming.add(memoryview(b"abcd"))


def test_a_message_of_too_many_frames_is_refused() -> None:
    with pytest.raises(MessageTooLarge, match="at most 1024 frames, found 1025"):
        OutgoingPayload([b""] * 1025)


@given(st.integers(64 * 1024, 1 << 30).map(round_up_to_granule))
def test_four_fragments_always_fit(ring_bytes: int) -> None:
    assert 4 * record_bytes(layout.largest_fragment_bytes(ring_bytes)) <= ring_bytes
    # A frame table lies wholly in a message's first fragment.
    assert layout.largest_fragment_bytes(ring_bytes) >= layout.MOST_FRAMES * layout.TABLE_ENTRY_BYTES


@pytest.mark.parametrize(("readers", "ring_bytes"), [(0, 64 * 1024), (1, 64 * 1024 + 1), (8, 2 << 20)])
def test_the_formula_is_what_is_allocated(readers: int, ring_bytes: int) -> None:
    ring = RingWriter(ring_bytes=ring_bytes, purpose="a test")
    try:
        for number in range(readers):
            ring.attach(str(number))
        descriptors = [ring.read_only_descriptor, *(page.descriptor for page in ring.readers.values())]
        allocated = sum(os.fstat(descriptor).st_blocks * 512 for descriptor in descriptors)
        assert allocated == shared_memory_bytes(local_readers=readers, ring_bytes=ring_bytes)
    finally:
        ring.close()


def test_a_rank_needs_one_request_queue_and_a_response_queue_for_each_worker() -> None:
    mebibyte = 1 << 20
    assert rank_shared_memory_bytes(local_workers=0) == 8 * mebibyte + GRANULE_BYTES
    assert rank_shared_memory_bytes(local_workers=8) == 8 * mebibyte + 9 * GRANULE_BYTES + 8 * (2 * mebibyte + 2 * GRANULE_BYTES)
