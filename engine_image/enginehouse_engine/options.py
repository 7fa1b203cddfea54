"""What an engine is started with: flags held against each other.

Invariant: options that were parsed make sense together; what does not is named with what to do. Does not look at the machine, the
model or the environment.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginehouse_engine import flags
from enginehouse_engine.config import ConfigError, ParallelConfig
from enginehouse_engine.drill import Drill


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for. Paths are absolute."""

    model: str
    """Empty only with executor Simulated."""
    revision: str
    served_model_name: str
    executor: str
    parallel: ParallelConfig
    api_servers: int
    host: str
    port: int
    memory_limit_bytes: int | None
    memory_utilization_percent: int
    max_context_length: int | None
    min_context_length: int
    startup_timeout_seconds: float
    drain_timeout_seconds: float
    hang_stall_seconds: int
    api_key_file: Path | None
    tls_certificate_file: Path | None
    """There with its key, or both absent."""
    tls_key_file: Path | None
    monitor_socket: Path | None
    replica_uid: str
    members: int
    member: int
    workers_per_member: int | None
    leader: str
    dtype: str
    log_format: str
    model_cache_dir: Path | None
    engine_name: str
    """Empty = the replica's identity."""
    ray_strategy: Literal["Pack", "Spread"]
    ray_token_file: Path | None
    simulated_weights: tuple[tuple[int, int], ...]
    """Rank and bytes."""
    drills: tuple[Drill, ...]


def parse(argv: Sequence[str] | None = None) -> Options:
    """Options from the command line (default: this process's own). Raises ConfigError; exits after ``--help``."""
    argv = sys.argv[1:] if argv is None else argv
    if foreign := [text for text in argv if not _is_text(text)]:
        raise ConfigError(f"{foreign[0]!r} is no UTF-8 text: rename what it names")
    given = flags.parser().parse_args(argv)
    if not given.model and given.executor != "Simulated":
        raise ConfigError("--model is missing: give a GGUF file, a Hugging Face folder or hf://org/name")
    if given.max_context_length is not None and given.max_context_length < given.min_context_length:
        raise ConfigError(
            f"--max-context-length {given.max_context_length} is below"
            f" --min-context-length {given.min_context_length}: no fit can be both"
        )
    if (given.tls_certificate_file is None) != (given.tls_key_file is None):
        raise ConfigError("--tls-certificate-file and --tls-key-file belong together: give both, or none for plain HTTP")
    _check_members(given)
    _check_ray(given)
    return Options(
        model=given.model,
        revision=given.revision,
        served_model_name=given.served_model_name or Path(given.model).name or given.executor.lower(),
        executor=given.executor,
        parallel=ParallelConfig(data=given.data_parallel, tensor=given.tensor_parallel, pipeline=given.pipeline_parallel),
        api_servers=given.api_servers,
        host=given.host,
        port=given.port,
        memory_limit_bytes=given.memory_limit_bytes,
        memory_utilization_percent=given.memory_utilization_percent,
        max_context_length=given.max_context_length,
        min_context_length=given.min_context_length,
        startup_timeout_seconds=given.startup_timeout_seconds,
        drain_timeout_seconds=given.drain_timeout_seconds,
        hang_stall_seconds=given.hang_stall_seconds,
        api_key_file=given.api_key_file,
        tls_certificate_file=given.tls_certificate_file,
        tls_key_file=given.tls_key_file,
        monitor_socket=given.monitor_socket,
        replica_uid=given.replica_uid or str(uuid.uuid4()),
        members=given.members,
        member=given.member,
        workers_per_member=given.workers_per_member,
        leader=given.leader,
        dtype=given.dtype,
        log_format=given.log_format,
        model_cache_dir=given.model_cache_dir,
        engine_name=given.engine_name,
        ray_strategy=given.ray_strategy or "Pack",
        ray_token_file=given.ray_token_file,
        simulated_weights=_simulated_weights(given.simulated_weights, executor=given.executor, ranks=given.data_parallel),
        drills=_drills(given.drill, executor=given.executor, members=given.members),
    )


def _check_members(given: argparse.Namespace) -> None:
    if given.members == 1:
        return
    if given.executor not in ("Ray", "Simulated"):
        raise ConfigError(
            f"--members {given.members} with --executor {given.executor}: only Ray and Simulated span several pods; leave"
            " parallelism.workersPerMember out"
        )
    if given.member >= given.members or not given.leader:
        raise ConfigError(f"--members {given.members} wants --member 0 to {given.members - 1} and --leader HOST")
    workers = given.data_parallel * given.tensor_parallel * given.pipeline_parallel
    if given.workers_per_member is None or given.members * given.workers_per_member != workers:
        raise ConfigError(
            f"--members {given.members} x --workers-per-member {given.workers_per_member} must be the {workers} workers of"
            f" data {given.data_parallel} x tensor {given.tensor_parallel} x pipeline {given.pipeline_parallel}"
        )


def _check_ray(given: argparse.Namespace) -> None:
    if given.executor != "Ray":
        for flag in ("ray_strategy", "ray_token_file"):
            if getattr(given, flag) is not None:
                raise ConfigError(f"--{flag.replace('_', '-')} is for --executor Ray, not {given.executor}")
        return
    if given.leader and given.ray_token_file is None:
        raise ConfigError(
            f"--executor Ray with --leader {given.leader} wants --ray-token-file: Ray does for everybody what it is asked"
        )
    # Then it is known in which member a worker will live before it is placed.
    each, of_rank = given.workers_per_member, given.tensor_parallel * given.pipeline_parallel
    if each is not None and of_rank % each and each % of_rank:
        raise ConfigError(
            f"--workers-per-member {each} must divide the {of_rank} workers of a rank (tensor x pipeline), or be a multiple of them"
        )


def _simulated_weights(given: list[tuple[int, int]], *, executor: str, ranks: int) -> tuple[tuple[int, int], ...]:
    if given and executor != "Simulated":
        raise ConfigError(f"--simulated-weights is for --executor Simulated, not {executor}: real weights weigh what they weigh")
    if foreign := [rank for rank, _ in given if rank >= ranks]:
        raise ConfigError(f"--simulated-weights names rank {foreign[0]}, but --data-parallel {ranks} has ranks 0 to {ranks - 1}")
    return tuple(given)


def _drills(given: list[Drill], *, executor: str, members: int) -> tuple[Drill, ...]:
    if given and executor != "Simulated":
        raise ConfigError(f"--drill is for --executor Simulated, not {executor}: nobody breaks a real engine by a flag")
    if members == 1 and (foreign := [found for found in given if found.role == "worker"]):
        raise ConfigError(f"--drill {foreign[0]}: executor Simulated has workers only where a replica has several members")
    return tuple(given)


def _is_text(argument: str) -> bool:
    """Python hands over bytes that are no UTF-8 as lone surrogates, which no message or file of ours can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)
