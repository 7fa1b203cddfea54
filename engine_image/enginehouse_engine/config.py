"""The configuration of one replica's engine: parsed once by the launcher, handed to every process as one JSON file.

Invariant: frozen and complete; a process never reads a flag, a default or the environment for behaviour again.
Does not parse flags (``flags.py``) and does not look at the machine (``memory_budget.py``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec


class ConfigError(Exception):
    """The configuration cannot work, however often it is tried: what was wanted, what was found, what to do. Exit code 78."""

    failure_class = "InvalidConfig"
    """Of the launcher's termination message."""


class ParallelConfig(msgspec.Struct, frozen=True):
    """How many processes share the work of one replica."""

    data: int = 1
    """Ranks: independent engine cores."""
    tensor: int = 1
    pipeline: int = 1


class MembersConfig(msgspec.Struct, frozen=True):
    """The pods that share the work of one replica."""

    count: int = 1
    own: int = 0
    """Number of this one; 0 is the leader."""
    workers_each: int = 0
    """Workers in each; 0 = all are in one."""
    address: str = ""
    """Of this pod, for the others; empty = there are none."""

    def of(self, worker: int) -> int:
        """Where a worker lives; ``worker`` is counted over rank after rank."""
        return worker // self.workers_each if self.workers_each else 0


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a process of the engine needs to know. Paths are absolute; the model is already on this machine."""

    replica_uid: str
    model_path: str
    """A GGUF file or a Hugging Face folder; empty for executor Simulated without a model."""
    model_uri: str
    """As the user wrote it, for messages."""
    served_model_name: str
    executor: str
    """``InProcess``, ``Multiprocess``, ``Ray`` or ``Simulated``."""
    parallel: ParallelConfig = ParallelConfig()
    members: MembersConfig = MembersConfig()
    api_servers: int = 1
    dtype: str = "auto"
    max_context_length: int | None = None
    """Absent = fit to memory."""
    min_context_length: int = 1
    memory_budget_bytes: int
    """What one worker may use in all: weights, activations and KV cache (bytes)."""
    memory_utilization_percent: int = 90
    """Share of a device's memory; already part of ``memory_budget_bytes``, which holds for the CPU."""
    block_size: int = 16
    """Tokens per KV block."""
    max_batch: int = 64
    """Most sequences running at once in a rank."""
    max_step_tokens: int = 512
    """Most tokens computed in one step: longer prompts are prefilled in chunks."""
    startup_timeout_seconds: float = 1800.0
    drain_timeout_seconds: float = 60.0
    api_key_file: str | None = None
    tls_certificate_file: str | None = None
    """With its key: HTTPS. Absent = HTTP."""
    tls_key_file: str | None = None
    simulated_weight_bytes: dict[int, int] = {}
    """With executor Simulated: what the model of a rank pretends to weigh, so that ranks fit different lengths."""

    @property
    def workers_per_rank(self) -> int:
        """Positions in the model that one rank is made of."""
        return self.parallel.tensor * self.parallel.pipeline

    def spans_members(self, rank: int) -> bool:
        """Has the rank workers in more than one member?"""
        last = self.workers_per_rank - 1
        return self.member_of(rank=rank, index=0) != self.member_of(rank=rank, index=last)

    def member_of(self, *, rank: int, index: int) -> int:
        """Number of the member that a worker lives in."""
        return self.members.of(rank * self.workers_per_rank + index)

    def hash(self) -> str:
        """Of what every process must agree on: model, dtype, shape of a rank, block size, limits. Not how many ranks there are."""
        agreed = (
            self.model_uri,
            self.dtype,
            self.executor,
            self.parallel.tensor,
            self.parallel.pipeline,
            self.block_size,
            self.max_context_length,
            self.replica_uid,
        )
        return hashlib.sha256(msgspec.json.encode(agreed)).hexdigest()[:16]


def save(config: EngineConfig, path: Path) -> None:
    """Write the file that :func:`load` reads."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(config)))


def load(path: Path) -> EngineConfig:
    """Read it back. Raises ConfigError when it is not what :func:`save` wrote."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=EngineConfig)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"the launcher's configuration file {path} cannot be read: {error}") from error
