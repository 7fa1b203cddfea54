"""From the options, the model's path and this machine's memory to the configuration that every process is given.

Invariant: the only place where the launcher looks at the machine's memory. Does not parse flags and does not write the file.
"""

from __future__ import annotations

import logging

from enginehouse_engine.config import EngineConfig, MembersConfig
from enginehouse_engine.launcher import cgroup, memory_budget
from enginehouse_engine.options import Options

logger = logging.getLogger("enginehouse.launcher")


def workers_per_rank(options: Options) -> int:
    """Worker processes beside each engine core; 0 = the core runs the model itself."""
    has_workers = options.executor in ("Multiprocess", "Ray") or options.members > 1
    return options.parallel.tensor * options.parallel.pipeline if has_workers else 0


def workers_each(options: Options) -> int:
    """Worker processes in each member; 0 = there is one member, and will be no other."""
    return (options.workers_per_member or 0) if options.members > 1 or options.executor == "Ray" else 0


def workers_here(options: Options) -> int:
    """Worker processes in this member."""
    return workers_each(options) or options.parallel.data * workers_per_rank(options)


def engine_config(options: Options, model_path: str, *, address: str = "") -> EngineConfig:
    """What every process is told. ``address``: of this pod, for other members. Raises ConfigError when the memory is too small."""
    limit, source = (
        (options.memory_limit_bytes, "--memory-limit-bytes") if options.memory_limit_bytes else cgroup.usable_memory_bytes()
    )
    workers = workers_per_rank(options)
    each = workers_each(options)
    cores = 0 if options.member else options.parallel.data
    budget = memory_budget.budget_per_worker_bytes(
        limit,
        utilization_percent=options.memory_utilization_percent,
        ranks=1 if each else options.parallel.data,
        workers=each or workers,
        api_servers=0 if options.member else options.api_servers,
        rank_process_bytes=memory_budget.member_process_bytes(options.executor, cores=cores, workers=each, workers_per_rank=workers)
        if each
        else memory_budget.rank_process_bytes(options.executor, workers=workers),
        ray_bytes=memory_budget.ray_bytes(options.executor, is_head=not options.member),
    )
    logger.info(
        "%d MiB for each %s: %d %% of %s",
        budget // memory_budget.MIB,
        "worker" if workers else "rank",
        options.memory_utilization_percent,
        source,
    )
    return EngineConfig(
        replica_uid=options.replica_uid,
        model_path=model_path,
        model_uri=options.model,
        served_model_name=options.served_model_name,
        executor=options.executor,
        parallel=options.parallel,
        members=MembersConfig(count=options.members, own=options.member, workers_each=each, address=address),
        api_servers=options.api_servers,
        dtype=options.dtype,
        max_context_length=options.max_context_length,
        min_context_length=options.min_context_length,
        memory_budget_bytes=budget,
        memory_utilization_percent=options.memory_utilization_percent,
        startup_timeout_seconds=options.startup_timeout_seconds,
        drain_timeout_seconds=options.drain_timeout_seconds,
        api_key_file=str(options.api_key_file) if options.api_key_file else None,
        tls_certificate_file=str(options.tls_certificate_file) if options.tls_certificate_file else None,
        tls_key_file=str(options.tls_key_file) if options.tls_key_file else None,
        simulated_weight_bytes=dict(options.simulated_weights),
    )
