"""The worker: its memory stays within what it was given, its types and threads are those of the machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginehouse_engine.config import ConfigError, EngineConfig
from enginehouse_engine.core.engine_core import EngineCore
from enginehouse_engine.cores import usable_cores
from enginehouse_engine.executor import model_worker
from enginehouse_engine.executor.contract import ExecutorFailure, StepInput
from enginehouse_engine.executor.in_process import InProcessExecutor
from enginehouse_engine.model.position import Position
from enginehouse_engine.protocol import Sampling, Submit, pack_tokens
from enginehouse_engine.worker import Worker, choose_dtype, device_of


def config(model: Path, **changes: Any) -> EngineConfig:
    fields: dict[str, Any] = {
        "replica_uid": "r",
        "model_path": str(model),
        "model_uri": "",
        "served_model_name": "m",
        "executor": "InProcess",
        "memory_budget_bytes": 1 << 30,
        "dtype": "float32",
        **changes,
    }
    return EngineConfig(**fields)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_full_cache_and_the_largest_step_stay_within_the_budget(small_models: dict[str, Path]) -> None:
    before = resident_bytes()
    budget = 192 << 20
    # A cache that would not fit: blocks of 48 KiB for sequences of 512 tokens, as many as the budget allows.
    settings = config(small_models["llama"], memory_budget_bytes=budget, max_batch=400, max_step_tokens=512)
    executor = InProcessExecutor(settings, rank=0)
    engine = EngineCore(settings, executor)
    assert engine.fit.total_blocks > 1000
    for index in range(400):
        prompt = [index % 300] * 60 + [index // 300] * 40
        engine.add(Submit(str(index), pack_tokens(prompt), Sampling(max_tokens=3, temperature=0.5, top_p=0.5)), front_end=0)
    while engine.has_work:
        engine.step()
        assert resident_bytes() - before <= budget
    assert engine.stats().kv_blocks_used == 0


def test_the_profile_run_measures_a_long_prompt_beside_a_full_batch(
    small_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a prompt sees stays in memory while everybody's logits are there: apart, the two need less than together."""
    steps: list[StepInput] = []
    compute = Worker._compute

    def noted(worker: Worker, step: StepInput, *others: Any) -> Any:
        steps.append(step)
        return compute(worker, step, *others)

    monkeypatch.setattr(Worker, "_compute", noted)
    Worker(config(small_models["llama"], max_batch=5, max_step_tokens=40), rank=0).profile()
    found = [(step.choosing, int(step.query_lengths.max()), int(step.context_lengths.max())) for step in steps]
    assert (5, 40, 512) in found
    assert all(step.sampling is not None and step.scoring is not None for step in steps)


def test_a_step_before_the_cache_is_there_is_refused(small_models: dict[str, Path]) -> None:
    worker = Worker(config(small_models["llama"]), rank=0)
    one = np.ones(1, np.int32)
    with pytest.raises(ExecutorFailure, match="before initialize_kv_cache"):
        worker.execute_model(
            StepInput(tokens=one, query_lengths=one, context_lengths=one, block_tables=np.ones((1, 1), np.int32), choosing=1)
        )


def test_bfloat16_says_nearly_what_float32_says(small_models: dict[str, Path]) -> None:
    def first_logprobs(dtype: str) -> dict[int, float]:
        settings = config(small_models["qwen3"], dtype=dtype)
        engine = EngineCore(settings, InProcessExecutor(settings, rank=0))
        sampling = Sampling(max_tokens=1, temperature=0, logprobs=320)
        engine.add(Submit("r", pack_tokens(list(range(40))), sampling), front_end=0)
        logprobs = engine.step()[0][0].logprobs[0]
        return dict(zip(logprobs.top_tokens, logprobs.top_logprobs, strict=True))

    exact, rounded = first_logprobs("float32"), first_logprobs("bfloat16")
    exact_probabilities = np.exp([exact[token] for token in range(320)])
    rounded_probabilities = np.exp([rounded[token] for token in range(320)])
    assert np.abs(exact_probabilities - rounded_probabilities).sum() < 0.2


def test_types_are_checked_and_auto_is_what_the_processor_computes_in() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu) is torch.float32
    flags = Path("/proc/cpuinfo").read_text()
    fast = "avx512_bf16" in flags or "amx_bf16" in flags
    assert choose_dtype("auto", cpu) is (torch.bfloat16 if fast else torch.float32)
    with pytest.raises(ConfigError, match="needs an accelerator"):
        choose_dtype("float16", cpu)
    with pytest.raises(ConfigError, match="found 'int8'"):
        choose_dtype("int8", cpu)


def test_each_worker_has_the_accelerator_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    everyone = [Position.of(index, tensor_size=2, pipeline_size=1) for index in range(2)]
    assert [device_of(rank, position).index for rank in (0, 1) for position in everyone] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"worker 1 of rank 2 needs an accelerator of its own, number 5 .* has 4: lower"):
        device_of(2, everyone[1])


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_cores_are_those_of_the_quota(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    everything = usable_cores(tmp_path)
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == (everything if limit is None else min(limit, everything))


def test_a_worker_computes_on_the_accelerator_that_was_chosen_for_it(
    monkeypatch: pytest.MonkeyPatch, small_models: dict[str, Path]
) -> None:
    chosen = []

    def on_the_cpu(rank: int, position: Position, *, number: int | None = None) -> torch.device:
        chosen.append(number)
        return torch.device("cpu")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(model_worker, "device_of", on_the_cpu)
    worker = model_worker.ModelWorker(
        config(small_models["llama"]), rank=3, index=0, stage=lambda name: None, deadline=math.inf, device=2
    )
    worker.load()
    assert chosen == [2]
    assert worker.profile().model_max_length > 0
