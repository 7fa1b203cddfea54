"""Log probabilities of prompts: each token's exactly once, whatever happens around it, and those that transformers computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse_engine.core.engine_core import EngineCore
from enginehouse_engine.core.prompt_scores import PromptScores
from enginehouse_engine.executor.contract import Int32s, ScoringInput, StepInput
from enginehouse_engine.executor.simulated import SimulatedExecutor, simulated_answer
from enginehouse_engine.model.scoring import SLICE_ROWS, score
from enginehouse_engine.protocol import PromptLogprobs, RequestOutput, unpack_tokens
from worker_processes import WorkerProcesses

from .test_engine_core import BLOCK, WEIGHTS, core, run, submit, tokens_of
from .test_engine_core import config as simulated_config
from .test_parity import Model, random_prompts
from .test_split_parity import config as split_config


def followers_of(scores: PromptLogprobs) -> list[int]:
    """The simulated executor calls the token that really follows the best one."""
    return unpack_tokens(scores.top_tokens)[:: scores.alternatives]


def scores_of(outputs: list[RequestOutput]) -> PromptLogprobs:
    first, *rest = outputs
    assert first.prompt_logprobs is not None
    assert all(output.prompt_logprobs is None for output in rest)
    return first.prompt_logprobs


@settings(max_examples=150, deadline=None)
@given(
    blocks=st.integers(3, 20),
    max_batch=st.integers(1, 6),
    extra=st.integers(0, 30),
    requests=st.lists(
        st.tuples(st.integers(1, 90), st.integers(0, 2), st.integers(0, 60), st.none() | st.integers(1, 3)), min_size=1, max_size=8
    ),
)
def test_every_prompt_token_is_scored_once_whatever_the_batch_the_chunks_the_reuse_and_the_preemptions(
    blocks: int, max_batch: int, extra: int, requests: list[tuple[int, int, int, int | None]]
) -> None:
    engine = core(memory_budget_bytes=WEIGHTS + blocks * BLOCK, max_batch=max_batch, max_step_tokens=max_batch + extra)
    limit = engine.fit.max_context_length
    prompts, answers = {}, {}
    for index, (length, first, answer, alternatives) in enumerate(requests):
        prompt = ([first] + [position % 7 for position in range(length)])[:limit]
        count = min(answer, limit - len(prompt))
        assert engine.add(submit(f"r{index}", prompt, count, prompt_logprobs=alternatives), front_end=0) is None
        prompts[f"r{index}"] = (prompt, alternatives)
        answers[f"r{index}"] = simulated_answer(prompt, count)
    outputs = run(engine)
    assert {name: tokens_of(rows) for name, rows in outputs.items()} == answers
    for name, (prompt, alternatives) in prompts.items():
        if alternatives is None:
            assert all(output.prompt_logprobs is None for output in outputs[name])
            continue
        scores = scores_of(outputs[name])
        assert followers_of(scores) == prompt[1:]
        assert len(scores.logprobs) == 4 * (len(prompt) - 1)
        assert len(scores.top_logprobs) == 4 * (len(prompt) - 1) * alternatives
        assert [output.finish_reason for output in outputs[name]][-1] == "length"
    assert engine.stats().kv_blocks_used == 0


class Watched:
    """A simulated engine that notes what its steps score."""

    def __init__(self, **changes: Any) -> None:
        self.scorings: list[ScoringInput | None] = []
        fields = simulated_config(**changes)
        self.engine = EngineCore(fields, SimulatedExecutor(fields, before_step=self._note))

    def _note(self, step: StepInput) -> None:
        self.scorings.append(step.scoring)


def test_a_preempted_prompt_goes_on_scoring_where_it_was() -> None:
    """An old request grows into the blocks of a prompt that is computed in chunks: it starts again and scores only the rest."""
    watched = Watched(memory_budget_bytes=WEIGHTS + 11 * BLOCK, max_batch=3, max_step_tokens=8)
    engine = watched.engine
    engine.add(submit("old", [1] * 15, 100), front_end=0)
    engine.step()
    engine.step()
    prompt = list(range(120))
    engine.add(submit("scored", prompt, 1, prompt_logprobs=1), front_end=0)
    outputs = run(engine)
    assert engine.stats().preemptions > 0
    assert followers_of(scores_of(outputs["scored"])) == prompt[1:]
    assert sum(len(scoring.rows) for scoring in watched.scorings if scoring is not None) == 119


def test_steps_carry_nothing_when_nobody_wants_it_or_the_prompt_is_done() -> None:
    watched = Watched()
    watched.engine.add(submit("plain", [1, 2, 3], 2, logprobs=1), front_end=0)
    run(watched.engine)
    assert watched.scorings == [None, None]
    watched.engine.add(submit("scored", [1, 2, 3], 3, prompt_logprobs=0), front_end=0)
    run(watched.engine)
    assert [scoring is None for scoring in watched.scorings[2:]] == [False, True, True]


def test_a_scored_prompt_reuses_no_prefix_but_others_reuse_its() -> None:
    engine = core()
    prompt = list(range(40))
    cached = {}
    for name, alternatives in {"one": 1, "two": 1, "three": None}.items():
        engine.add(submit(name, prompt, 1, prompt_logprobs=alternatives), front_end=0)
        cached[name] = run(engine)[name][0].cached_tokens
    assert cached == {"one": 0, "two": 0, "three": 32}


def test_with_no_answer_asked_for_only_the_prompt_is_computed() -> None:
    engine = core()
    engine.add(submit("scored", [5, 6, 7], 0, prompt_logprobs=2), front_end=0)
    engine.add(submit("only computed", [5, 6, 7], 0), front_end=0)
    outputs = run(engine)
    (scored,), (computed,) = outputs["scored"], outputs["only computed"]
    assert (scored.tokens, scored.finish_reason) == (computed.tokens, computed.finish_reason) == ((), "length")
    assert followers_of(scores_of([scored])) == [6, 7]
    assert computed.prompt_logprobs is None
    assert engine.stats().kv_blocks_used == 0


def test_a_prompt_of_the_whole_context_can_be_scored() -> None:
    engine = core(max_context_length=64)
    assert engine.add(submit("fits", [1] * 64, 0, prompt_logprobs=1), front_end=0) is None
    assert followers_of(scores_of(run(engine)["fits"])) == [1] * 63
    refusal = engine.add(submit("one more", [1] * 65, 0, prompt_logprobs=1), front_end=0)
    assert refusal is not None
    assert refusal.context_limit == 64


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    engine = core()
    engine.add(submit("r", [1], 1, prompt_logprobs=3), front_end=0)
    assert scores_of(run(engine)["r"]) == PromptLogprobs(b"")


def test_scores_asked_for_too_early_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="4 positions of a prompt were to be scored, 0 were"):
        PromptScores(5, alternatives=1).message()


def reference_logprobs(folder: Path, prompts: list[list[int]]) -> list[torch.Tensor]:
    """What transformers says of each prompt's tokens after the first: (length - 1, vocabulary)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return [torch.log_softmax(model(torch.tensor([prompt])).logits[0, :-1], dim=-1) for prompt in prompts]


def assert_scored(scores: PromptLogprobs, wanted: torch.Tensor, prompt: list[int]) -> None:
    shape = (len(prompt) - 1, scores.alternatives)
    top = torch.from_numpy(np.frombuffer(scores.top_logprobs, "<f4").reshape(shape).copy())
    tokens = torch.from_numpy(np.frombuffer(scores.top_tokens, "<i4").reshape(shape).astype(np.int64))
    own = torch.from_numpy(np.frombuffer(scores.logprobs, "<f4").copy())
    torch.testing.assert_close(own, wanted.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0], atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(top, wanted.topk(scores.alternatives).values, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(top, wanted.gather(1, tokens), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_prompts_are_scored_as_by_transformers(kind: str, small_models: dict[str, Path]) -> None:
    """Together with others, alone, in chunks, and where memory is so scarce that requests are set back."""
    prompts = [prompt for prompt in random_prompts() if len(prompt) > 1]
    wanted = reference_logprobs(small_models[kind], prompts)
    model = Model(small_models[kind])
    for name, changes in {"whole": {}, "chunks": {"max_step_tokens": 13, "max_batch": 5}, "scarce": {"blocks": 12}}.items():
        engine = model.engine(**changes)
        for index, prompt in enumerate(prompts):
            engine.add(submit(f"plain {index}", prompt, 20), front_end=0)
            engine.add(submit(str(index), prompt, 20, prompt_logprobs=3), front_end=0)
        outputs = run(engine)
        for index, prompt in enumerate(prompts):
            assert_scored(scores_of(outputs[str(index)]), wanted[index], prompt)
            assert tokens_of(outputs[str(index)]) == tokens_of(outputs[f"plain {index}"])
        assert (engine.stats().preemptions > 0) == (name == "scarce")


def test_a_prompt_longer_than_a_slice_is_scored_as_by_smollm2_itself(smollm2: Path, smollm2_float32: Path) -> None:
    from enginehouse_engine.text import gguf_tokenizer
    from enginehouse_engine.text.gguf_metadata import read_metadata

    text = "The capital of France is Paris, and the capital of Italy is Rome. Water boils at a hundred degrees. " * 8
    prompt = gguf_tokenizer.build(read_metadata(smollm2)).encode(text).ids
    assert len(prompt) > 2 * SLICE_ROWS
    (wanted,) = reference_logprobs(smollm2_float32, [prompt])
    engine = Model(smollm2).engine(max_step_tokens=150)
    engine.add(submit("r", prompt, 0, prompt_logprobs=5), front_end=0)
    assert_scored(scores_of(run(engine)["r"]), wanted, prompt)


def test_logits_are_made_for_so_many_rows_at_once_as_the_profile_run_has_measured() -> None:
    rows = np.arange(2 * SLICE_ROWS + 1, dtype=np.int32)
    asked: list[int] = []

    def logits_at(part: Int32s) -> torch.Tensor:
        asked.extend([len(part)])
        return torch.from_numpy(part)[:, None] + torch.zeros(len(part), 3)

    scores = score(ScoringInput(rows=rows, followers=rows % 3, alternatives=2), logits_at)
    assert asked == [SLICE_ROWS, SLICE_ROWS, 1]
    assert scores is not None
    assert np.allclose(scores.logprobs, np.log(1 / 3))
    assert scores.top_tokens.shape == (len(rows), 2)


def test_a_worker_that_only_takes_part_in_the_logits_has_no_scores() -> None:
    rows = np.arange(3, dtype=np.int32)
    assert score(ScoringInput(rows=rows, followers=rows, alternatives=2), lambda _: None) is None


@pytest.fixture(scope="module")
def processes() -> Iterator[WorkerProcesses]:
    started = WorkerProcesses(4)
    yield started
    started.close()


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2)])
def test_a_split_model_scores_prompts_as_transformers_does(
    small_models: dict[str, Path], processes: WorkerProcesses, tensor: int, pipeline: int
) -> None:
    folder = small_models["llama-tied"]
    prompts = [prompt for prompt in random_prompts() if len(prompt) > 1]
    assert max(map(len, prompts)) > SLICE_ROWS
    fields = split_config(folder, tensor=tensor, pipeline=pipeline)
    engine = EngineCore(fields, processes.rank(fields))
    for index, prompt in enumerate(prompts):
        engine.add(submit(str(index), prompt, 3, prompt_logprobs=3), front_end=0)
    outputs = run(engine)
    for index, (prompt, wanted) in enumerate(zip(prompts, reference_logprobs(folder, prompts), strict=True)):
        assert_scored(scores_of(outputs[str(index)]), wanted, prompt)
