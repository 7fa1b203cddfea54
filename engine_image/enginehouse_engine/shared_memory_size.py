"""How much shared memory a message queue takes: the formula by which the operator sizes a pod's volume, and which the launcher
takes off before it divides the memory. Here and not in the queue's package, so that the launcher stays light.

Invariant: pure arithmetic, and exactly what a writer allocates (a test compares). Allocation is whole and at once, so a volume
of this size is enough whatever is sent, and one that is too small is refused when the queue is made, not when it is full.

    shared_memory_bytes(readers, ring) = 64 KiB + ring + readers * 64 KiB
    rank_shared_memory_bytes(workers)  = shared_memory_bytes(workers, 8 MiB) + workers * shared_memory_bytes(1, 2 MiB)

64 KiB is the largest page size of the machines we run on, so that the operator need not know the node's. A reader that returns
takes a page of its own before the old one's is given back: count it as one more reader where that is wanted.
"""

from __future__ import annotations

from typing import Final

GRANULE_BYTES: Final = 64 * 1024
"""Every part of shared memory starts and ends at a multiple of this."""
REQUEST_RING_BYTES: Final = 8 * 1024 * 1024
"""Engine core to its workers: a step of 8,192 tokens with its block tables is under 1 MiB."""
RESPONSE_RING_BYTES: Final = 2 * 1024 * 1024
"""A worker to its engine core: tokens and logprobs of a step."""


def round_up_to_granule(size_bytes: int) -> int:
    return -(-size_bytes // GRANULE_BYTES) * GRANULE_BYTES


def shared_memory_bytes(*, local_readers: int, ring_bytes: int = REQUEST_RING_BYTES) -> int:
    """One queue: a page of counters, the ring, one page for each reader on this node. Remote readers take none."""
    return GRANULE_BYTES + round_up_to_granule(ring_bytes) + local_readers * GRANULE_BYTES


def rank_shared_memory_bytes(*, local_workers: int) -> int:
    """One rank: a request queue to all workers, and a response queue back from each on this node."""
    requests = shared_memory_bytes(local_readers=local_workers, ring_bytes=REQUEST_RING_BYTES)
    return requests + local_workers * shared_memory_bytes(local_readers=1, ring_bytes=RESPONSE_RING_BYTES)
