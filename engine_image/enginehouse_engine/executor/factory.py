"""From the configuration to an executor: the only place that knows the kinds.

Each kind is imported when it is asked for, so that ``Simulated`` starts without torch.
"""

from __future__ import annotations

from enginehouse_engine.config import ConfigError, EngineConfig
from enginehouse_engine.executor.contract import Executor


def create_executor(config: EngineConfig, *, rank: int = 0) -> Executor:
    """Load the model of one rank in the way ``config.executor`` asks for. Raises ConfigError when that way is not to be had."""
    workers = config.parallel.tensor * config.parallel.pipeline
    if config.executor == "Simulated":
        from enginehouse_engine.executor.simulated import SimulatedExecutor

        return SimulatedExecutor(config, rank=rank)
    if config.executor == "InProcess":
        if workers != 1:
            raise ConfigError(
                f"executor InProcess runs one worker per rank, but tensor {config.parallel.tensor} x pipeline "
                f"{config.parallel.pipeline} asks for {workers}: set both to 1"
            )
        from enginehouse_engine.executor.in_process import InProcessExecutor

        return InProcessExecutor(config, rank=rank)
    if config.executor == "Multiprocess":
        raise ConfigError(
            "executor Multiprocess is not part of this version: use executor InProcess with tensor and pipeline 1, and "
            "parallelism.data for more than one accelerator"
        )
    raise ConfigError(f"unknown executor {config.executor!r}: use InProcess or Simulated")
