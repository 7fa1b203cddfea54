"""One worker in the engine core's own process: one accelerator, or the CPU.

Invariant: nothing between core and worker but a call; a failure is the exception itself.
"""

from __future__ import annotations

from typing import Any

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.executor.contract import Executor, ExecutorFailure, StepInput, StepOutput, WorkerProfile
from enginehouse_engine.worker import Worker


class InProcessExecutor(Executor):
    """Loads the model on construction."""

    def __init__(self, config: EngineConfig, *, rank: int = 0) -> None:
        self._worker = Worker(config, rank=rank)

    def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(self._worker, method)(*arguments)]

    def determine_available_memory(self) -> list[WorkerProfile]:
        return [self._worker.profile()]

    def initialize_kv_cache(self, total_blocks: int) -> None:
        self._worker.initialize_kv_cache(total_blocks)

    def execute_model(self, step: StepInput) -> StepOutput:
        output = self._worker.execute_model(step)
        if output is None:
            raise ExecutorFailure("the only worker of the rank is not the one that chooses")
        return output

    def check_health(self) -> None:
        """Always healthy: a broken worker raises in the step."""

    def shutdown(self) -> None:
        self._worker.shutdown()
