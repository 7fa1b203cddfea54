"""How much memory one rank may use, from the memory that the whole engine may use. Pure.

Invariant: what all processes of the engine keep together stays within the share that was asked for. Where a rank computes on a
device, the device's own memory counts instead, and the worker applies the share itself. Does not read limits: ``cgroup.py`` does.
"""

from __future__ import annotations

from typing import Final

from enginehouse_engine.config import ConfigError

MIB: Final = 1024 * 1024

LAUNCHER_BYTES: Final = 32 * MIB
"""Measured 24 MiB resident."""
API_SERVER_BYTES: Final = 192 * MIB
"""Interpreter, HTTP server and tokenizer of one API server; the vocabulary is the larger part."""
TORCH_PROCESS_BYTES: Final = 384 * MIB
"""Interpreter and libraries of one engine core before it holds any weight; most of them are clean file pages."""
SIMULATED_PROCESS_BYTES: Final = 48 * MIB
"""The same without torch."""

_SMALLEST_BUDGET_BYTES: Final = 16 * MIB


def rank_process_bytes(executor: str) -> int:
    """What one engine core keeps for itself."""
    return SIMULATED_PROCESS_BYTES if executor == "Simulated" else TORCH_PROCESS_BYTES


def budget_per_rank_bytes(
    limit_bytes: int, *, utilization_percent: int, ranks: int, api_servers: int, rank_process_bytes: int
) -> int:
    """Bytes for weights, activations and KV cache of one rank.

    ``(limit x utilization / 100 - launcher - API servers - rank processes) / ranks``, rounded down. Raises ConfigError when
    less than 16 MiB are left for a rank.
    """
    kept = LAUNCHER_BYTES + api_servers * API_SERVER_BYTES + ranks * rank_process_bytes
    budget = (limit_bytes * utilization_percent // 100 - kept) // ranks
    if budget < _SMALLEST_BUDGET_BYTES:
        needed = (kept + ranks * _SMALLEST_BUDGET_BYTES) * 100 // utilization_percent
        raise ConfigError(
            f"{limit_bytes // MIB} MiB at {utilization_percent} % leave {max(0, budget) // MIB} MiB for each of {ranks} ranks,"
            f" because the processes keep {kept // MIB} MiB; needed are at least {needed // MIB + 1} MiB plus the model's size"
        )
    return budget
