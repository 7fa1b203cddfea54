"""How much memory one worker may use, from the memory that the whole engine may use. Pure.

Invariant: what all processes of the engine keep together stays within the share that was asked for. What they keep is what the
kernel cannot take back; clean pages of libraries are not in it: it can, and a step touches 13 of torch's 240 MiB (measured).
Where a worker computes on a device, the device's own memory counts instead, and the worker applies the share itself. Does not read
limits: ``cgroup.py`` does.
"""

from __future__ import annotations

from typing import Final

from enginehouse_engine.config import ConfigError
from enginehouse_engine.shared_memory_size import (
    REQUEST_RING_BYTES,
    RESPONSE_RING_BYTES,
    rank_shared_memory_bytes,
    shared_memory_bytes,
)

MIB: Final = 1024 * 1024

LAUNCHER_BYTES: Final = 32 * MIB
"""Measured 12 MiB of its own, 23 MiB resident."""
API_SERVER_BYTES: Final = 192 * MIB
"""Interpreter, HTTP server and tokenizer of one API server: measured 47 MiB of its own, 67 resident, with 49,000 words; the largest
vocabularies in use have 256,000."""
TORCH_PROCESS_BYTES: Final = 320 * MIB
"""Of a process that runs a model, before it holds any weight: measured 297 MiB of its own with torch for CUDA 13, most of it what
the loader writes into the libraries. 533 MiB are resident."""
CORE_PROCESS_BYTES: Final = 48 * MIB
"""An engine core without torch: measured 25 MiB of its own, 44 resident."""
RAY_HEAD_BYTES: Final = 448 * MIB
"""Ray's own processes in the leader, with its object store's file and the actor manager: measured 283 MiB, without the manager and
with nothing in the store, which is 75 MiB large."""
RAY_NODE_BYTES: Final = 256 * MIB
"""The same in another member: measured 153 MiB."""
RAY_ACTOR_BYTES: Final = 48 * MIB
"""What Ray adds to a process that it has started: measured 40 MiB of its own, 78 resident."""

_SMALLEST_BUDGET_BYTES: Final = 16 * MIB


def rank_process_bytes(executor: str, *, workers: int) -> int:
    """What the processes of one rank keep for themselves; ``workers`` are those beside its core, with queues in shared memory.

    The container's memory limit counts shared memory like any other.
    """
    own = TORCH_PROCESS_BYTES if executor == "InProcess" else CORE_PROCESS_BYTES
    queues = rank_shared_memory_bytes(local_workers=workers) if workers else 0
    return own + workers * TORCH_PROCESS_BYTES + queues + (1 + workers) * _actor_bytes(executor)


def member_process_bytes(executor: str, *, cores: int, workers: int, workers_per_rank: int) -> int:
    """The same for all that one of several members holds: ``cores`` (all in the leader) and ``workers``."""
    worker = _actor_bytes(executor) + (TORCH_PROCESS_BYTES if executor == "Ray" else CORE_PROCESS_BYTES)
    core = _actor_bytes(executor) + CORE_PROCESS_BYTES
    requests = shared_memory_bytes(local_readers=workers_per_rank, ring_bytes=REQUEST_RING_BYTES)
    answers = shared_memory_bytes(local_readers=1, ring_bytes=RESPONSE_RING_BYTES)
    return cores * (core + requests) + workers * (worker + answers)


def ray_bytes(executor: str, *, is_head: bool) -> int:
    """What Ray's own processes keep in one pod."""
    if executor != "Ray":
        return 0
    return RAY_HEAD_BYTES if is_head else RAY_NODE_BYTES


def _actor_bytes(executor: str) -> int:
    return RAY_ACTOR_BYTES if executor == "Ray" else 0


def budget_per_worker_bytes(
    limit_bytes: int,
    *,
    utilization_percent: int,
    ranks: int,
    workers: int,
    api_servers: int,
    rank_process_bytes: int,
    ray_bytes: int = 0,
) -> int:
    """Bytes for weights, activations and KV cache of one worker, or of a core that runs the model itself (``workers`` = 0).

    ``(limit x utilization / 100 - launcher - Ray - API servers - ranks' processes) / (ranks x workers)``, rounded down. Raises
    ConfigError when less than 16 MiB are left.
    """
    kept = LAUNCHER_BYTES + ray_bytes + api_servers * API_SERVER_BYTES + ranks * rank_process_bytes
    shares = ranks * max(1, workers)
    budget = (limit_bytes * utilization_percent // 100 - kept) // shares
    if budget < _SMALLEST_BUDGET_BYTES:
        needed = (kept + shares * _SMALLEST_BUDGET_BYTES) * 100 // utilization_percent
        who = f"{ranks} ranks" if workers < 2 else f"{shares} workers"
        raise ConfigError(
            f"{limit_bytes // MIB} MiB at {utilization_percent} % leave {max(0, budget) // MIB} MiB for each of {who},"
            f" because the processes keep {kept // MIB} MiB; needed are at least {needed // MIB + 1} MiB plus the model's size"
        )
    return budget
