"""What a worker process serves for executor Simulated when a replica has several members: no model, and no torch.

Invariant: the same tokens as ``simulated.py`` in one process, whose cache every worker keeps whole.
Does not move messages (``serving.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.executor.contract import StepInput, StepOutput, WorkerProfile
from enginehouse_engine.executor.simulated import SimulatedExecutor


class SimulatedWorker:
    """See ``Served``."""

    def __init__(self, config: EngineConfig, *, rank: int, index: int, stage: Callable[[str], None]) -> None:
        """``stage`` tells the launcher what is done now."""
        self._stage = stage
        self.record: dict[str, str] = {}
        self._model = SimulatedExecutor(config, rank=rank)
        self._answers = index == config.workers_per_rank - config.parallel.tensor
        """As of real workers: the first of the last stage."""

    def meet(self, first: dict[str, Any]) -> None:
        """There is nothing to know of the others."""

    def load(self) -> None:
        """There is nothing to load."""
        self._stage("load")

    def profile(self) -> WorkerProfile:
        self._stage("profile")
        return self._model.determine_available_memory()[0]

    def initialize_kv_cache(self, total_blocks: int) -> None:
        self._model.initialize_kv_cache(total_blocks)
        self._stage("serve")

    def execute_model(self, step: StepInput) -> StepOutput | None:
        output = self._model.execute_model(step)
        return output if self._answers else None

    def check_health(self) -> None:
        self._model.check_health()
