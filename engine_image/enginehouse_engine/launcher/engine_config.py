"""From the options, the model's path and this machine's memory to the configuration that every process is given.

Invariant: the only place where the launcher looks at the machine's memory. Does not parse flags and does not write the file.
"""

from __future__ import annotations

import logging

from enginehouse_engine.config import ConfigError, EngineConfig
from enginehouse_engine.flags import Options
from enginehouse_engine.launcher import cgroup, memory_budget

logger = logging.getLogger("enginehouse.launcher")


def workers_per_rank(options: Options) -> int:
    """Worker processes beside each engine core; 0 = the core runs the model itself."""
    return options.parallel.tensor * options.parallel.pipeline if options.executor == "Multiprocess" else 0


def engine_config(options: Options, model_path: str) -> EngineConfig:
    """What every process is told. Raises ConfigError when the memory is too small."""
    if options.members > 1:
        raise ConfigError(
            f"a replica of {options.members} members was asked for, and this version of the engine keeps a replica in one pod:"
            " leave parallelism.workersPerMember out"
        )
    limit, source = (
        (options.memory_limit_bytes, "--memory-limit-bytes") if options.memory_limit_bytes else cgroup.usable_memory_bytes()
    )
    workers = workers_per_rank(options)
    budget = memory_budget.budget_per_worker_bytes(
        limit,
        utilization_percent=options.memory_utilization_percent,
        ranks=options.parallel.data,
        workers=workers,
        api_servers=options.api_servers,
        rank_process_bytes=memory_budget.rank_process_bytes(options.executor, workers=workers),
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
        api_servers=options.api_servers,
        dtype=options.dtype,
        max_context_length=options.max_context_length,
        min_context_length=options.min_context_length,
        memory_budget_bytes=budget,
        memory_utilization_percent=options.memory_utilization_percent,
        startup_timeout_seconds=options.startup_timeout_seconds,
        drain_timeout_seconds=options.drain_timeout_seconds,
        api_key_file=str(options.api_key_file) if options.api_key_file else None,
        simulated_weight_bytes=dict(options.simulated_weights),
    )
