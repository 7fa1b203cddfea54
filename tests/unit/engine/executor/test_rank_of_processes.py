"""A whole rank: the real engine core's process with real workers, and the same tokens however the model is split."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from enginehouse_engine.config import EngineConfig, ParallelConfig
from enginehouse_engine.core.engine_core import EngineCore
from enginehouse_engine.core.process import CAUSE_SECONDS
from enginehouse_engine.executor.contract import Executor
from enginehouse_engine.executor.in_process import InProcessExecutor
from enginehouse_engine.executor.multiprocess import MultiprocessExecutor
from enginehouse_engine.protocol import RequestOutput, Sampling, Submit, pack_tokens
from rank_processes import Rank

PROMPTS = [list(range(5)), list(range(300, 260, -1)), [7] * 33]
SAMPLINGS = [
    Sampling(max_tokens=20, temperature=0),
    Sampling(max_tokens=20, temperature=0, logprobs=5, presence_penalty=0.5),
    Sampling(max_tokens=20, temperature=0.8, seed=3, top_p=0.9),
]


def answers(config: EngineConfig, executor: Executor) -> dict[str, list[RequestOutput]]:
    """By request, whatever else is in its batch."""
    core = EngineCore(config, executor)
    for number, (prompt, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True)):
        assert core.add(Submit(str(number), pack_tokens(prompt), sampling), front_end=0) is None
    found: dict[str, list[RequestOutput]] = {}
    while core.has_work:
        for rows in core.step().values():
            for row in rows:
                found.setdefault(row.request_id, []).append(row)
    return found


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2)])
def test_workers_choose_the_tokens_that_one_process_chooses(
    make_rank, small_models: dict[str, Path], tensor: int, pipeline: int
) -> None:  # type: ignore[no-untyped-def]
    settings: dict[str, Any] = {"model_path": str(small_models["llama"]), "dtype": "float32", "max_context_length": 128}
    rank: Rank = make_rank(tensor * pipeline, parallel=ParallelConfig(tensor=tensor, pipeline=pipeline), **settings)
    rank.start_workers()
    executor = MultiprocessExecutor(rank.config, rank=0, incarnation=1, rendezvous=rank)
    split = answers(rank.config, executor)
    executor.shutdown()
    whole = answers(rank.config, InProcessExecutor(rank.config))
    assert {name: [row.tokens for row in rows] for name, rows in split.items()} == {
        name: [row.tokens for row in rows] for name, rows in whole.items()
    }
    for row, other in zip(split["1"], whole["1"], strict=True):
        assert row.logprobs[0].top_tokens == other.logprobs[0].top_tokens
        assert row.logprobs[0].top_logprobs == pytest.approx(other.logprobs[0].top_logprobs, abs=1e-4)


def ready_core(rank: Rank) -> None:
    rank.start_workers()
    rank.introduce_all()
    rank.said("engine-core", 0, "stage", stage="handshake")


def test_an_engine_core_with_workers_does_without_torch(make_rank, small_models: dict[str, Path]) -> None:  # type: ignore[no-untyped-def]
    rank = make_rank(1, core=True, model_path=str(small_models["llama"]))
    ready_core(rank)
    maps = {role: Path(f"/proc/{rank.pids[role, 0]}/maps").read_text() for role in ("engine-core", "worker")}
    assert "libtorch" in maps["worker"]
    assert "libtorch" not in maps["engine-core"]
    rank.say("engine-core", 0, "stop")
    assert rank.exit_code("engine-core", 0) == 0
    assert rank.last_words("engine-core", 0) == b"bye\n"
    rank.say("worker", 0, "stop")
    assert rank.exit_code("worker", 0) == 0


def test_an_idle_core_whose_worker_dies_leaves_its_launcher_time_to_say_of_what_and_then_ends_and_names_it(make_rank) -> None:  # type: ignore[no-untyped-def]
    rank = make_rank(2, core=True, behaviours={})
    ready_core(rank)
    rank.kill(1)
    killed = time.monotonic()
    said = rank.said("engine-core", 0, "failed")
    assert time.monotonic() - killed >= CAUSE_SECONDS
    assert "WorkerGone: rank 0: worker 1 is gone" in said["message"]
    assert rank.exit_code("engine-core", 0) == 1


def test_a_worker_that_cannot_work_makes_the_core_exit_without_hope(make_rank) -> None:  # type: ignore[no-untyped-def]
    rank = make_rank(2, core=True, behaviours={0: "load=hang", 1: "load=config"})
    rank.start_workers()
    rank.introduce_all()
    for role, index in (("worker", 1), ("engine-core", 0)):
        said = rank.said(role, index, "failed")
        assert said["class"] == "InvalidConfig"
        assert "worker 1 cannot work so" in said["message"]
        assert rank.exit_code(role, index) == 78


def test_a_worker_whose_core_is_killed_waits_for_the_launchers_word(make_rank) -> None:  # type: ignore[no-untyped-def]
    rank = make_rank(1, core=True, behaviours={})
    ready_core(rank)
    rank.processes["engine-core", 0].kill()
    rank.exit_code("engine-core", 0)
    assert rank.processes["worker", 0].poll() is None
    rank.say("worker", 0, "stop")
    assert rank.exit_code("worker", 0) == 0
    assert rank.last_words("worker", 0) == b"bye\n"
