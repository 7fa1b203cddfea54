"""What a worker process serves when there is a model: joins the rank's other workers, then everything is ``worker.py``'s.

Invariant: worker 0 has bound the store in which the others find it before anybody is told of it; one that is alone binds none.
Does not move messages (``serving.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.executor.contract import ExecutorFailure, StepInput, StepOutput, WorkerProfile
from enginehouse_engine.model.parallel import LOOPBACK, Position, bind_store, join
from enginehouse_engine.worker import Worker, device_of


class ModelWorker:
    """See ``Served``. ``stage`` tells the launcher what is done now; ``deadline`` is the start-up's.

    ``device``: which of the accelerators that this process sees is its own; None = the one of its place in the replica.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        rank: int,
        index: int,
        stage: Callable[[str], None],
        deadline: float,
        device: int | None = None,
    ) -> None:
        self._config = config
        self._rank = rank
        self._stage = stage
        self._device = device
        self._host = config.members.address if config.spans_members(rank) else LOOPBACK
        self._deadline = deadline
        self._position = Position.of(index, tensor_size=config.parallel.tensor, pipeline_size=config.parallel.pipeline)
        self._store: Any = ""
        self.record: dict[str, str] = {}
        if index == 0 and self._position.workers > 1:
            self._store, self.record["store"] = bind_store(self._host)
        self._worker: Worker | None = None

    def meet(self, first: dict[str, Any]) -> None:
        if self._position.index > 0:
            self._store = first.get("store", "")

    def load(self) -> None:
        self._stage("load")
        left = max(0.001, self._deadline - time.monotonic())
        device = device_of(self._rank, self._position, number=self._device)
        parallel = join(self._store, position=self._position, device=device, deadline_seconds=left, host=self._host)
        self._worker = Worker(self._config, rank=self._rank, parallel=parallel, device=device)

    def profile(self) -> WorkerProfile:
        self._stage("profile")
        return self._loaded().profile()

    def initialize_kv_cache(self, total_blocks: int) -> None:
        self._loaded().initialize_kv_cache(total_blocks)
        self._stage("serve")

    def execute_model(self, step: StepInput) -> StepOutput | None:
        return self._loaded().execute_model(step)

    def check_health(self) -> None:
        self._loaded()

    def _loaded(self) -> Worker:
        if self._worker is None:
            raise ExecutorFailure("the model is not loaded: load comes first")
        return self._worker
