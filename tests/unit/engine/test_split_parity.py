"""A model split over worker processes says what it says in one process: the same greedy tokens, and logits that are close.

What one process says equals Hugging Face transformers (``test_parity.py``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse_engine.config import EngineConfig, ParallelConfig
from enginehouse_engine.core.engine_core import EngineCore
from enginehouse_engine.executor.contract import Executor, ExecutorFailure
from enginehouse_engine.executor.in_process import InProcessExecutor
from enginehouse_engine.protocol import RequestOutput, Sampling, Submit, pack_tokens
from worker_processes import WorkerProcesses

from .conftest import save_small_model

ANSWER = 24
ALTERNATIVES = 20
CLOSE = 2e-4
"""Difference of log probabilities in float32: the same sums in another order."""
THREE_WAYS = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96, "intermediate_size": 100, "vocab_size": 322}
"""A shape whose heads three workers can share; dimensions and vocabulary leave a rest."""
KINDS = ["llama", "llama-tied", "mistral", "qwen2", "qwen2-window", "qwen3"]
SHAPES = [(2, 1), (1, 2), (2, 2)]


def config(model: Path, *, tensor: int = 1, pipeline: int = 1, **changes: Any) -> EngineConfig:
    fields: dict[str, Any] = {
        "replica_uid": "r",
        "model_path": str(model),
        "model_uri": "",
        "served_model_name": "m",
        "executor": "Multiprocess",
        "parallel": ParallelConfig(1, tensor, pipeline),
        "memory_budget_bytes": 1 << 30,
        "dtype": "float32",
        **changes,
    }
    return EngineConfig(**fields)


def prompts(vocabulary_size: int = 320) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(vocabulary_size) for _ in range(length)] for length in (1, 7, 16, 33, 90)]


Said = tuple[list[list[int]], np.typing.NDArray[np.float64], list[int]]


def say(engine: EngineCore, prompts: list[list[int]], **sampling: Any) -> Said:
    """Tokens; log probabilities of the best alternatives in their order; reused tokens of each prompt."""
    asked = Sampling(
        **{"max_tokens": ANSWER, "temperature": 0, "ignore_eos": True, "logprobs": ALTERNATIVES, **sampling},
    )
    for index, prompt in enumerate(prompts):
        assert engine.add(Submit(str(index), pack_tokens(prompt), asked), front_end=0) is None
    outputs: list[list[RequestOutput]] = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step().get(0, ()):
            outputs[int(output.request_id)].append(output)
    tokens = [[token for output in rows for token in output.tokens] for rows in outputs]
    best = np.array([[output.logprobs[0].top_logprobs for output in rows] for rows in outputs])
    return tokens, best, [rows[0].cached_tokens for rows in outputs]


def everything(model: Path, executor: Executor, **shape: int) -> list[Said]:
    """Prompts in one batch, with reused prefixes, in chunks, and with chance."""
    engine = EngineCore(config(model, **shape), executor)
    said = [say(engine, prompts()), say(engine, prompts())]
    said.append(say(EngineCore(config(model, max_step_tokens=13, max_batch=5, **shape), executor), prompts()))
    return [*said, say(engine, prompts(), temperature=1.0, seed=3, repetition_penalty=1.2)]


def assert_same(found: list[Said], wanted: list[Said]) -> None:
    for (tokens, best, cached), (wanted_tokens, wanted_best, wanted_cached) in zip(found, wanted, strict=True):
        assert tokens == wanted_tokens
        assert np.abs(best - wanted_best).max() < CLOSE
        assert cached == wanted_cached


@pytest.fixture(scope="module")
def processes() -> Iterator[WorkerProcesses]:
    started = WorkerProcesses(4)
    yield started
    started.close()


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, small_models: dict[str, Path]) -> tuple[Path, list[Said]]:
    """A model, and what it says in one process."""
    model = small_models[request.param]
    return model, everything(model, InProcessExecutor(config(model), rank=0))


@pytest.mark.parametrize(("tensor", "pipeline"), SHAPES)
def test_a_split_model_says_the_same(
    whole: tuple[Path, list[Said]], processes: WorkerProcesses, tensor: int, pipeline: int
) -> None:
    model, wanted = whole
    rank = processes.rank(config(model, tensor=tensor, pipeline=pipeline))
    assert_same(everything(model, rank, tensor=tensor, pipeline=pipeline), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_three_positions_say_the_same(kind: str, tmp_path: Path, processes: WorkerProcesses) -> None:
    model = save_small_model(kind, tmp_path, **THREE_WAYS)
    wanted = everything(model, InProcessExecutor(config(model), rank=0))
    assert_same(everything(model, processes.rank(config(model, tensor=3)), tensor=3), wanted)


def test_positions_that_share_a_key_head_say_the_same(small_models: dict[str, Path], processes: WorkerProcesses) -> None:
    model = small_models["qwen3"]
    wanted = everything(model, InProcessExecutor(config(model), rank=0))
    assert_same(everything(model, processes.rank(config(model, tensor=4)), tensor=4), wanted)


def test_a_stage_for_each_layer_says_the_same(small_models: dict[str, Path], processes: WorkerProcesses) -> None:
    model = small_models["llama-tied"]
    wanted = everything(model, InProcessExecutor(config(model), rank=0))
    assert_same(everything(model, processes.rank(config(model, pipeline=3)), pipeline=3), wanted)


def test_smollm2_says_the_same_in_three_positions(smollm2: Path, processes: WorkerProcesses) -> None:
    texts = [[1, 504, 3575, 282, 4649, 314], list(range(1000, 1090))]
    alone = config(smollm2, memory_budget_bytes=2 << 30)
    whole = say(EngineCore(alone, InProcessExecutor(alone, rank=0)), texts, max_tokens=12)
    settings = config(smollm2, tensor=3, memory_budget_bytes=2 << 30)
    engine = EngineCore(settings, processes.rank(settings))
    assert_same([say(engine, texts, max_tokens=12)], [whole])


def test_a_worker_that_dies_in_a_step_is_noticed_by_the_others_at_once(
    small_models: dict[str, Path],
) -> None:
    processes = WorkerProcesses(2)
    try:
        settings = config(small_models["llama"], tensor=2)
        rank = processes.rank(settings)
        rank.determine_available_memory()
        processes.kill(1)
        with pytest.raises(ExecutorFailure, match="worker 0 lost another worker of its rank during a sum"):
            rank.collective_rpc("profile")
    finally:
        processes.close()


def test_each_worker_says_what_its_own_share_needs(small_models: dict[str, Path]) -> None:
    """Three layers of two key heads of 16 in float32, blocks of 16 tokens.

    In fresh processes, as workers are: one that held a model before may return its memory while the next is measured.
    """
    a_layer_of_one_head = 2 * 16 * 16 * 4
    processes = WorkerProcesses(4)
    try:
        rank = processes.rank(config(small_models["llama"], tensor=2, pipeline=2))
        profiles = rank.determine_available_memory()
    finally:
        processes.close()
    assert [profile.block_bytes for profile in profiles] == [2 * a_layer_of_one_head] * 2 + [a_layer_of_one_head] * 2
    assert {profile.vocabulary_size for profile in profiles} == {320}
    assert all(0 < profile.available_bytes < 1 << 30 for profile in profiles)
