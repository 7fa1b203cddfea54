"""make bench NAME=executor: what one decoding step takes with executor InProcess, Multiprocess and Ray, on the same small model.

The one job: the engine core's side of each executor in this process, its worker where it belongs (here, in a child, in an actor of
a real Ray node), the same step to each in turns within one run. The model is so small that most of a step is the way to the
worker and back. The bar is for Ray beside Multiprocess, whose message queue it shares: only the worker's birth differs.
The invariant kept: all three choose the same tokens.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import ray
import record

import small_model
from enginehouse_engine.config import EngineConfig
from enginehouse_engine.executor.contract import Executor, StepInput
from enginehouse_engine.executor.in_process import InProcessExecutor
from enginehouse_engine.executor.multiprocess import MultiprocessExecutor
from enginehouse_engine.launcher.process import WORKER, Process
from enginehouse_engine.ray.actors import EngineActor
from rank_processes import UID, Rank
from ray_nodes import RayNodes

REPEATS = 20
STEPS = 200
WARM_UP = 50
CONTEXT_TOKENS = 64
BLOCKS = 64
START_SECONDS = 180.0
OVER_MULTIPROCESS_US = 200.0


def step(config: EngineConfig) -> StepInput:
    """One token more of one sequence, always the same one."""
    blocks = CONTEXT_TOKENS // config.block_size + 1
    return StepInput(
        tokens=np.array([7], np.int32),
        query_lengths=np.array([1], np.int32),
        context_lengths=np.array([CONTEXT_TOKENS], np.int32),
        block_tables=np.arange(1, blocks + 1, dtype=np.int32).reshape(1, -1),
        choosing=1,
    )


@contextmanager
def in_process(config: EngineConfig, _: Path) -> Iterator[Executor]:
    yield InProcessExecutor(config)


@contextmanager
def multiprocess(config: EngineConfig, folder: Path) -> Iterator[Executor]:
    with ExitStack() as stack:
        rank = Rank(folder, config)
        stack.callback(rank.close)
        rank.start_workers()
        executor = MultiprocessExecutor(config, rank=0, incarnation=1, rendezvous=rank)
        stack.callback(executor.shutdown)
        yield executor


@contextmanager
def in_ray(config: EngineConfig, folder: Path) -> Iterator[Executor]:
    with ExitStack() as stack:
        rank = Rank(folder, config)
        stack.callback(rank.close)
        nodes = RayNodes()
        stack.callback(nodes.close)
        nodes.start(0, accelerators=1)
        # Where an actor looks for its pod's launcher.
        (nodes.run_directory(0) / "launcher.sock").symlink_to(rank.path)
        (nodes.run_directory(0) / "config.json").symlink_to(folder / "engine.json")
        os.environ["RAY_AUTH_MODE"] = "disabled"
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        stack.callback(ray.shutdown)
        actor = ray.remote(EngineActor).options(num_cpus=0).remote(Process(WORKER, 0, 0, 1))
        actor.run.remote([ray.get(actor.where.remote(), timeout=START_SECONDS)])
        executor = MultiprocessExecutor(config, rank=0, incarnation=1, rendezvous=rank)
        stack.callback(executor.shutdown)
        yield executor


KINDS: dict[str, Callable[[EngineConfig, Path], contextmanager]] = {  # type: ignore[type-arg]  # of what, says each
    "InProcess": in_process,
    "Multiprocess": multiprocess,
    "Ray": in_ray,
}


def measure(executor: Executor, work: StepInput, count: int) -> tuple[list[float], set[int]]:
    """Microseconds of each step, and what was chosen."""
    micros, chosen = [], set()
    for _ in range(count):
        began = time.perf_counter()
        output = executor.execute_model(work)
        micros.append((time.perf_counter() - began) * 1e6)
        chosen.add(int(output.tokens[0]))
    return micros, chosen


def main() -> int:
    busy = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        small_model.make(folder)
        executors: dict[str, Executor] = {}
        for name, make in KINDS.items():
            config = EngineConfig(
                replica_uid=UID,
                model_path=str(folder),
                model_uri="",
                served_model_name="m",
                executor=name,
                dtype="float32",
                max_context_length=256,
                memory_budget_bytes=2 << 30,
                startup_timeout_seconds=START_SECONDS,
            )
            own = folder / name
            own.mkdir()
            executors[name] = stack.enter_context(make(config, own))
            executors[name].determine_available_memory()
            executors[name].initialize_kv_cache(BLOCKS)
            measure(executors[name], step(config), WARM_UP)
        work = step(config)
        micros: dict[str, list[list[float]]] = {name: [] for name in KINDS}
        chosen: set[int] = set()
        for turn in range(REPEATS):
            order = list(KINDS)[turn % 3 :] + list(KINDS)[: turn % 3]
            for name in order:
                taken, tokens = measure(executors[name], work, STEPS)
                micros[name].append(taken)
                chosen |= tokens
        if len(chosen) != 1:
            raise SystemExit(f"the executors chose different tokens: {chosen}")
    medians = {name: [statistics.median(turn) for turn in turns] for name, turns in micros.items()}
    figures = {
        "load before": busy,
        "steps in each repeat": STEPS,
        "us per step": {name: _summary([value for turn in turns for value in turn]) for name, turns in micros.items()},
        "p50 us of each repeat": medians,
    }
    for name, summary in figures["us per step"].items():
        print(name, *(f"{key} {value:.0f} us" for key, value in summary.items()))
    over = statistics.median(mine - other for mine, other in zip(medians["Ray"], medians["Multiprocess"], strict=True))
    bar = record.at_most("p50 of a step, Ray over Multiprocess", over, limit=OVER_MULTIPROCESS_US, unit="us")
    return record.write("executor", figures=figures, bars=[bar], repeats=REPEATS, packages=("ray", "torch", "msgspec"))


def _summary(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50": statistics.median(values), "p90": cuts[89], "p99": cuts[98]}


if __name__ == "__main__":
    sys.exit(main())
