"""From the configuration to an executor: the only place that knows the kinds.

Each kind is imported when it is asked for, so that ``Simulated`` starts without torch.
"""

from __future__ import annotations

from enginehouse_engine.config import ConfigError, EngineConfig
from enginehouse_engine.executor.contract import Executor
from enginehouse_engine.executor.rendezvous import Rendezvous


def create_executor(config: EngineConfig, *, rank: int = 0, incarnation: int = 1, rendezvous: Rendezvous | None = None) -> Executor:
    """Load the model of one rank in the way ``config.executor`` asks for. One that has workers meets them at the ``rendezvous``.

    Raises ConfigError when that way is not to be had.
    """
    workers = config.workers_per_rank
    if config.executor == "Simulated" and config.members.count == 1:
        from enginehouse_engine.executor.simulated import SimulatedExecutor

        return SimulatedExecutor(config, rank=rank)
    if config.executor == "InProcess":
        if workers != 1:
            raise ConfigError(
                f"executor InProcess runs one worker per rank, but tensor {config.parallel.tensor} x pipeline "
                f"{config.parallel.pipeline} asks for {workers}: use executor Multiprocess, or set both to 1"
            )
        from enginehouse_engine.executor.in_process import InProcessExecutor

        return InProcessExecutor(config, rank=rank)
    if config.executor in ("Multiprocess", "Ray", "Simulated"):
        # What Ray does otherwise is how the processes come to be: then they are the same.
        if rendezvous is None:
            raise ConfigError(f"executor {config.executor} needs a launcher that starts its workers: use enginehouse-engine")
        from enginehouse_engine.executor.multiprocess import MultiprocessExecutor

        return MultiprocessExecutor(config, rank=rank, incarnation=incarnation, rendezvous=rendezvous)
    raise ConfigError(f"unknown executor {config.executor!r}: use InProcess, Multiprocess, Ray or Simulated")
