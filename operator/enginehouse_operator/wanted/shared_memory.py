"""How large a member's /dev/shm has to be: the engine's formula for its message queues, repeated here.

Invariant: what the engine allocates fits. Operator and engine never import each other; a contract test compares the two
formulas (`enginehouse_engine/shared_memory_size.py`). The size is a ceiling: only pages that are used count, against the
container's memory limit, and the launcher leaves them room. Does not know volumes (``pods.py``).

    queue(readers, ring) = 64 KiB + ring + readers * 64 KiB
    one rank, in one pod = queue(workers, 8 MiB) + workers * queue(1, 2 MiB)
    with Ray the leader's part is that of the most ranks there may be, and Ray's object store is added
"""

from __future__ import annotations

from typing import Final

from enginehouse_operator import names
from enginehouse_operator.api import EngineCopy

MIB: Final = 1024 * 1024
GRANULE_BYTES: Final = 64 * 1024
REQUEST_RING_BYTES: Final = 8 * MIB
"""Engine core to its workers."""
RESPONSE_RING_BYTES: Final = 2 * MIB
"""A worker to its engine core."""
OTHERS_BYTES: Final = 64 * MIB
"""For libraries: what a container has when nobody asks for more. gloo takes none."""
MOST_RANKS: Final = 64
"""Of one replica."""
RAY_STORE_BYTES: Final = 78643200
"""Ray's object store, of which we use nothing: the smallest that it takes."""
NCCL_BYTES: Final = 1024 * MIB
"""For NCCL where workers share layers on devices that do not reach each other's memory: the size its makers ask for."""


def member_shared_memory_bytes(copy: EngineCopy, *, ordinal: int) -> int:
    """Queues of the cores and workers in this pod. The leader has all cores, each with a queue to its rank's workers."""
    shape = copy.parallelism
    size = OTHERS_BYTES + shape.workers_of_member * _queue_bytes(readers=1, ring_bytes=RESPONSE_RING_BYTES)
    if ordinal == 0:
        size += _most_ranks(copy) * _queue_bytes(readers=shape.workers_of_rank, ring_bytes=REQUEST_RING_BYTES)
    if copy.executor == "Ray":
        size += RAY_STORE_BYTES
    has_devices = any("/" in resource for resource in copy.resources.limits)
    return size + NCCL_BYTES if has_devices and shape.workers_of_rank > 1 else size


def _most_ranks(copy: EngineCopy) -> int:
    """That this leader may ever have: a pod's volumes stay as they were made."""
    shape = copy.parallelism
    if not copy.is_elastic:
        return shape.data
    return min(MOST_RANKS, names.MOST_MEMBERS * shape.workers_of_member // shape.workers_of_rank)


def _queue_bytes(*, readers: int, ring_bytes: int) -> int:
    return GRANULE_BYTES + ring_bytes + readers * GRANULE_BYTES
