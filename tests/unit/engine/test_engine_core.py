"""The engine core on the simulated executor: what is asked is what comes out, whatever happens around it."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse_engine.config import ConfigError, EngineConfig, ParallelConfig
from enginehouse_engine.core.batch import uniforms
from enginehouse_engine.core.engine_core import EngineCore
from enginehouse_engine.executor.contract import StepInput, WorkerProfile
from enginehouse_engine.executor.factory import create_executor
from enginehouse_engine.executor.simulated import END_TOKEN, SimulatedExecutor, simulated_answer
from enginehouse_engine.protocol import RequestOutput, Sampling, Submit, pack_tokens

WEIGHTS = 32 << 20
BLOCK = 2 * 30 * 3 * 64 * 2 * 16


def config(**changes: Any) -> EngineConfig:
    fields: dict[str, Any] = {
        "replica_uid": "r",
        "model_path": "",
        "model_uri": "",
        "served_model_name": "s",
        "executor": "Simulated",
        "memory_budget_bytes": WEIGHTS + 600 * BLOCK,
    }
    return EngineConfig(**{**fields, **changes})


def core(**changes: Any) -> EngineCore:
    settings = config(**changes)
    return EngineCore(settings, SimulatedExecutor(settings))


def submit(name: str, prompt: list[int], max_tokens: int, **sampling: Any) -> Submit:
    return Submit(
        name, pack_tokens(prompt), Sampling(max_tokens=max_tokens, **{"temperature": 0.0, "ignore_eos": True, **sampling})
    )


def run(engine: EngineCore, front_end: int = 0) -> dict[str, list[RequestOutput]]:
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_work:
        for output in engine.step().get(front_end, ()):
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def test_a_queue_of_long_prompts_costs_little_memory() -> None:
    """One HTTP request may queue 2048 answers: as lists of numbers their prompts alone would be 600 MB."""
    engine = core()
    prompt = pack_tokens([200] * 8000)
    tracemalloc.start()
    for index in range(40):
        assert engine.add(Submit(str(index), prompt, Sampling(max_tokens=1)), front_end=0) is None
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / (40 * 8000) < 5


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


@settings(max_examples=150, deadline=None)
@given(
    blocks=st.integers(3, 20),
    max_batch=st.integers(1, 6),
    extra=st.integers(0, 30),
    prompts=st.lists(st.tuples(st.integers(1, 90), st.integers(0, 2), st.integers(1, 60)), min_size=1, max_size=8),
)
def test_answers_do_not_depend_on_batching_chunks_reuse_or_preemption(
    blocks: int, max_batch: int, extra: int, prompts: list[tuple[int, int, int]]
) -> None:
    engine = core(memory_budget_bytes=WEIGHTS + blocks * BLOCK, max_batch=max_batch, max_step_tokens=max_batch + extra)
    limit = engine.fit.max_context_length
    wanted = {}
    for index, (length, first, answer) in enumerate(prompts):
        prompt = ([first] + [position % 7 for position in range(length)])[: limit - 1]
        count = min(answer, limit - len(prompt))
        assert engine.add(submit(f"r{index}", prompt, count), front_end=0) is None
        wanted[f"r{index}"] = simulated_answer(prompt, count)
    got = {name: tokens_of(outputs) for name, outputs in run(engine).items()}
    assert got == wanted
    assert engine.stats().kv_blocks_used == 0


def test_a_preempted_request_goes_on_where_it_was() -> None:
    engine = core(memory_budget_bytes=WEIGHTS + 7 * BLOCK)
    prompts = {"a": [1] * 20, "b": [2] * 20, "c": [3] * 20}
    for name, prompt in prompts.items():
        engine.add(submit(name, prompt, 40), front_end=0)
    outputs = run(engine)
    assert engine.stats().preemptions > 0
    for name, prompt in prompts.items():
        assert tokens_of(outputs[name]) == simulated_answer(prompt, 40)
        assert [output.finish_reason for output in outputs[name]] == [None] * 39 + ["length"]


def test_a_second_request_reuses_the_prefix_and_says_how_much() -> None:
    engine = core()
    prompt = list(range(40))
    engine.add(submit("one", prompt, 4), front_end=0)
    first = run(engine)["one"]
    engine.add(submit("two", prompt, 4), front_end=0)
    second = run(engine)["two"]
    assert [output.cached_tokens for output in first] == [0, 0, 0, 0]
    assert [output.cached_tokens for output in second] == [32, 0, 0, 0]
    assert tokens_of(first) == tokens_of(second)
    assert engine.stats().cached_tokens == 32


def test_outputs_go_to_the_front_end_that_asked_though_ids_are_equal() -> None:
    engine = core()
    engine.add(submit("same", [1], 2), front_end=0)
    engine.add(submit("same", [2], 2), front_end=5)
    outputs = engine.step()
    assert set(outputs) == {0, 5}
    assert outputs[0][0].tokens[0] == simulated_answer([1], 1)[0]
    assert outputs[5][0].tokens[0] == simulated_answer([2], 1)[0]
    engine.abort_front_end(5)
    assert set(engine.step()) == {0}
    assert not engine.has_work


def test_an_aborted_request_says_nothing_more_and_leaves_nothing_behind() -> None:
    engine = core()
    engine.add(submit("stays", [1], 3), front_end=0)
    engine.add(submit("goes", [2], 3), front_end=0)
    engine.step()
    engine.abort(["goes", "never was"], front_end=0)
    assert set(run(engine)) == {"stays"}
    assert engine.stats().kv_blocks_used == 0


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (submit("r", [], 1), "empty"),
        (submit("r", [1], -1), "max_tokens is at least 0"),
        (submit("r", [1, 257], 1), "token id 257 is not in the model's vocabulary of 257"),
        (submit("r", [1], 1, logit_bias={-1: 1.0}), "token id -1"),
        (submit("r", [1], 1, stop_token_ids=(300,)), "token id 300"),
        (submit("r", [1] * 8000, 193), "need a context of 8193 tokens, this engine's is 8192"),
    ],
)
def test_what_can_never_run_is_refused_at_once(request_: Submit, words: str) -> None:
    engine = core()
    refusal = engine.add(request_, front_end=0)
    assert refusal is not None
    assert refusal.finish_reason == "refused"
    assert words in refusal.error
    assert refusal.context_limit == (8192 if "context" in words else None)
    assert not engine.has_work


def test_a_prompt_that_is_no_token_ids_is_the_front_ends_fault() -> None:
    refusal = core().add(Submit("r", b"123", Sampling(max_tokens=1)), front_end=0)
    assert refusal is not None
    assert refusal.finish_reason == "error"
    assert "4-byte steps" in refusal.error


def test_an_id_in_use_is_refused_and_the_first_request_goes_on() -> None:
    engine = core()
    assert engine.add(submit("r", [1], 2), front_end=0) is None
    refusal = engine.add(submit("r", [2], 2), front_end=0)
    assert refusal is not None
    assert refusal.finish_reason == "error"
    assert "already running" in refusal.error
    assert tokens_of(run(engine)["r"]) == simulated_answer([1], 2)


def test_a_stop_token_ends_the_answer_and_is_reported() -> None:
    answer = simulated_answer([1, 2, 3], 20)
    stop = answer[5]
    engine = core()
    engine.add(submit("r", [1, 2, 3], 20, stop_token_ids=(stop,)), front_end=0)
    outputs = run(engine)["r"]
    end = answer.index(stop)
    assert tokens_of(outputs) == answer[: end + 1]
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].stop_token == stop


def test_the_models_end_token_ends_the_answer_unless_it_is_ignored() -> None:
    prompt = next([seed] for seed in range(256) if END_TOKEN in simulated_answer([seed], 100))
    end = simulated_answer(prompt, 100).index(END_TOKEN)
    engine = core()
    engine.add(submit("heeds", prompt, 100, ignore_eos=False), front_end=0)
    engine.add(submit("ignores", prompt, 100), front_end=0)
    outputs = run(engine)
    assert len(outputs["heeds"]) == end + 1
    assert outputs["heeds"][-1].stop_token == END_TOKEN
    assert len(outputs["ignores"]) == 100


def test_no_token_ends_an_answer_before_its_min_tokens() -> None:
    """Those that would are forbidden; the simulated model does not care, as one that is forbidden everything."""
    steps: list[StepInput] = []
    settings = config()
    engine = EngineCore(settings, SimulatedExecutor(settings, before_step=steps.append))
    tokens = simulated_answer([1, 2], 5)
    assert tokens[0] not in tokens[1:]
    asked = submit("r", [1, 2], 5, ignore_eos=False, stop_token_ids=(tokens[0],), min_tokens=3)
    assert engine.add(asked, front_end=0) is None
    rows = run(engine)["r"]
    assert ([row.tokens for row in rows], rows[-1].finish_reason) == ([(token,) for token in tokens], "length")
    forbidden = [None if step.sampling is None else step.sampling.bias_tokens.tolist() for step in steps]
    assert forbidden == [sorted((tokens[0], END_TOKEN))] * 3 + [None] * 2
    assert all(step.sampling is None or np.isneginf(step.sampling.bias_values).all() for step in steps)


def test_an_end_token_that_the_model_does_not_have_is_not_forbidden() -> None:
    """Nobody can choose it, and a sampler finds no place for it: settings of a model are changed by hand."""

    class Foreign(SimulatedExecutor):
        def determine_available_memory(self) -> list[WorkerProfile]:
            (profile,) = super().determine_available_memory()
            return [dataclasses.replace(profile, end_token_ids=(END_TOKEN, profile.vocabulary_size))]

    steps: list[StepInput] = []
    settings = config()
    engine = EngineCore(settings, Foreign(settings, before_step=steps.append))
    engine.add(submit("r", [1, 2], 1, min_tokens=1), front_end=0)
    run(engine)
    assert [step.sampling and step.sampling.bias_tokens.tolist() for step in steps] == [[END_TOKEN]]


def test_settings_and_history_stand_in_the_row_of_their_own_sequence() -> None:
    """Rows change places: the longer sequence was first, and is last once both have one token to compute."""
    steps: list[StepInput] = []
    settings = config()
    engine = EngineCore(settings, SimulatedExecutor(settings, before_step=steps.append))
    penalized = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.5}
    engine.add(submit("longer", [1, 2, 3], 2, **penalized), front_end=0)
    engine.add(submit("shorter", [5, 6], 2, logit_bias={9: 2.0, 8: -1.0}, top_k=4, top_p=0.5, min_p=0.125), front_end=0)
    run(engine)
    said = simulated_answer([1, 2, 3], 1)
    sampling = steps[1].sampling
    assert sampling is not None
    assert sampling.history_rows.tolist() == [1, 1, 1, 1]
    assert sampling.history_tokens.tolist() == [1, 2, 3, *said]
    assert sampling.history_generated.tolist() == [False, False, False, True]
    assert (sampling.presence_penalty.tolist(), sampling.frequency_penalty.tolist()) == ([0, 0.5], [0, 0.25])
    assert sampling.repetition_penalty.tolist() == [1, 1.5]
    biases = zip(sampling.bias_rows.tolist(), sampling.bias_tokens.tolist(), sampling.bias_values.tolist(), strict=True)
    assert sorted(biases) == [(0, 8, -1.0), (0, 9, 2.0)]
    assert (sampling.top_k.tolist(), sampling.top_p.tolist(), sampling.min_p.tolist()) == ([4, 0], [0.5, 1], [0.125, 0])


def test_seeded_answers_repeat_and_unseeded_ones_differ() -> None:
    engine = core()
    for name, seed in {"a": 7, "b": 7, "c": 8, "d": None, "e": None}.items():
        engine.add(submit(name, [1, 2], 30, temperature=1.0, seed=seed), front_end=0)
    answers = {name: tuple(tokens_of(outputs)) for name, outputs in run(engine).items()}
    assert answers["a"] == answers["b"]
    assert len(set(answers.values())) == 4


def test_logprobs_come_with_every_token_of_those_who_asked() -> None:
    engine = core()
    engine.add(submit("wants", [1], 3, logprobs=2), front_end=0)
    engine.add(submit("chosen only", [1], 3, logprobs=0), front_end=0)
    engine.add(submit("none", [1], 3), front_end=0)
    outputs = run(engine)
    assert [len(output.logprobs[0].top_tokens) for output in outputs["wants"]] == [2, 2, 2]
    assert [output.logprobs[0].top_tokens for output in outputs["chosen only"]] == [(), (), ()]
    assert [output.logprobs for output in outputs["none"]] == [(), (), ()]


def test_uniforms_are_spread_and_tell_seeds_and_positions_apart() -> None:
    numbers = uniforms(np.arange(1000, dtype=np.uint64), np.zeros(1000, np.uint64))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.03
    along = uniforms(np.zeros(1000, np.uint64), np.arange(1000, dtype=np.uint64))
    assert len(np.unique(np.concatenate([numbers, along]))) == 1999


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"executor": "Multiprocess"}, "needs a launcher that starts its workers"),
        ({"executor": "InProcess", "parallel": ParallelConfig(tensor=2)}, "use executor Multiprocess, or set both to 1"),
        ({"executor": "Nonsense"}, "unknown executor 'Nonsense'"),
    ],
)
def test_executors_that_are_not_to_be_had_say_what_to_do(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        create_executor(config(**changes))


def test_a_step_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="raise max_step_tokens"):
        core(max_batch=8, max_step_tokens=7)


def test_time_between_steps_counts_only_while_there_is_work() -> None:
    now = [0.0]

    def spend(_: Any) -> None:
        now[0] += 2.0  # the model's

    settings = config()
    engine = EngineCore(settings, SimulatedExecutor(settings, before_step=spend), clock=lambda: now[0])
    for name in ("first", "second"):
        engine.add(submit(name, [1, 2, 3], max_tokens=3), front_end=0)
        while engine.has_work:
            engine.step()
            now[0] += 0.5  # the loop's
        now[0] += 100.0  # nobody's
    stats = engine.stats()
    assert (stats.steps, stats.model_seconds, stats.outside_model_seconds) == (6, 12.0, 2.0)
