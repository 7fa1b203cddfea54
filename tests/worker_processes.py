"""A rank's workers in processes of their own, for tests of the model alone: commands go to them through pipes.

Processes come from a fork server that has imported torch and are used for one rank after another: a test can afford many. Every
wait has a deadline. The engine's own executor (``executor/multiprocess.py``) is tested elsewhere.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.executor.contract import Executor, ExecutorFailure, StepInput, StepOutput, WorkerProfile
from enginehouse_engine.model.parallel import Position, bind_store, join
from enginehouse_engine.worker import Worker

PATIENCE_SECONDS = 180.0
"""No test waits longer for anything."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["worker_processes"])


class WorkerProcesses:
    """Idle processes that become the workers of one rank after another."""

    def __init__(self, count: int) -> None:
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_obey, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def rank(self, config: EngineConfig) -> ParallelRank:
        """A loaded rank on the first processes; the one before it is gone."""
        count = config.parallel.tensor * config.parallel.pipeline
        pipes = self._pipes[:count]
        pipes[0].send(("bind",))
        address = receive(pipes[0])
        for index, pipe in enumerate(pipes):
            position = Position.of(index, tensor_size=config.parallel.tensor, pipeline_size=config.parallel.pipeline)
            pipe.send(("load", config, position, address))
        for pipe in pipes:
            receive(pipe)
        return ParallelRank(pipes)

    def kill(self, index: int) -> None:
        self._processes[index].kill()
        self._processes[index].join(PATIENCE_SECONDS)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(PATIENCE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


class ParallelRank(Executor):
    """An executor over such processes."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        for pipe in self._pipes:
            # A worker that is gone is heard of from the others.
            with contextlib.suppress(BrokenPipeError):
                pipe.send(("call", method, arguments))
        return [receive(pipe) for pipe in self._pipes]

    def determine_available_memory(self) -> list[WorkerProfile]:
        return self.collective_rpc("profile")

    def initialize_kv_cache(self, total_blocks: int) -> None:
        self.collective_rpc("initialize_kv_cache", total_blocks)

    def execute_model(self, step: StepInput) -> StepOutput:
        (output,) = [output for output in self.collective_rpc("execute_model", step) if output is not None]
        assert isinstance(output, StepOutput)
        return output

    def check_health(self) -> None:
        """Not asked for."""

    def shutdown(self) -> None:
        self.collective_rpc("shutdown")


def receive(pipe: Connection) -> Any:
    """A worker's answer. Raises ExecutorFailure with its traceback."""
    if not pipe.poll(PATIENCE_SECONDS):
        raise ExecutorFailure("a worker did not answer")
    outcome, value = pipe.recv()
    if outcome == "failed":
        raise ExecutorFailure(value)
    return value


def _obey(pipe: Connection) -> None:
    """Until the other end is closed."""
    store: Any = None
    worker: Worker | None = None
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            if command == "bind":
                store, answer = bind_store()
            elif command == "load":
                config, position, address = arguments
                worker = None
                meeting = store if position.index == 0 else address
                parallel = join(meeting, position=position, device=torch.device("cpu"), deadline_seconds=PATIENCE_SECONDS)
                worker = Worker(config, rank=0, parallel=parallel)
                answer = None
            else:
                method, values = arguments
                answer = getattr(worker, method)(*values)
            pipe.send(("done", answer))
        except Exception:  # noqa: BLE001 - whatever it is, the test shall see it
            pipe.send(("failed", traceback.format_exc()))
