"""Greedy tokens equal those of Hugging Face transformers on the same weights in float32.

The small random models are compared with ``generate`` itself. For SmolLM2 the reference is one forward pass over prompt and our
answer: if its best token at every position is ours, then by induction its own greedy answer is ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.core.engine_core import EngineCore
from enginehouse_engine.executor.contract import WorkerProfile
from enginehouse_engine.executor.in_process import InProcessExecutor
from enginehouse_engine.protocol import RequestOutput, Sampling, Submit, pack_tokens

ANSWER = 64
KINDS = ["llama", "llama-tied", "mistral", "qwen2", "qwen2-window", "qwen3"]


def config(model_path: Path, **changes: Any) -> EngineConfig:
    fields: dict[str, Any] = {
        "replica_uid": "r",
        "model_path": str(model_path),
        "model_uri": "",
        "served_model_name": "m",
        "executor": "InProcess",
        "memory_budget_bytes": 4 << 30,
        "dtype": "float32",
        **changes,
    }
    return EngineConfig(**fields)


class FewBlocks(InProcessExecutor):
    """Says that only so many usable blocks fit, whatever the memory."""

    blocks = 10_000
    _profile: WorkerProfile | None = None

    def determine_available_memory(self) -> list[WorkerProfile]:
        # Measured once: every engine of a model asks, and the largest steps take longer than what is tested.
        profile = self._profile = self._profile or super().determine_available_memory()[0]
        return [
            WorkerProfile(
                available_bytes=(self.blocks + 1) * profile.block_bytes,
                block_bytes=profile.block_bytes,
                model_max_length=profile.model_max_length,
                vocabulary_size=profile.vocabulary_size,
                end_token_ids=profile.end_token_ids,
            )
        ]


class Model:
    """One loaded model; every engine made from it has an empty cache."""

    def __init__(self, path: Path) -> None:
        self.config = config(path)
        self.executor = FewBlocks(self.config, rank=0)

    def engine(self, *, blocks: int = 10_000, **changes: Any) -> EngineCore:
        self.executor.blocks = blocks
        return EngineCore(config(Path(self.config.model_path), **changes), self.executor)


def answers(engine: EngineCore, prompts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The answers to prompts submitted together, and how many prompt tokens each reused."""
    sampling = Sampling(max_tokens=ANSWER, temperature=0, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        assert engine.add(Submit(str(index), pack_tokens(prompt), sampling), front_end=0) is None
    outputs: list[list[RequestOutput]] = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step().get(0, ()):
            outputs[int(output.request_id)].append(output)
    tokens = [[token for output in rows for token in output.tokens] for rows in outputs]
    return tokens, [rows[0].cached_tokens for rows in outputs]


def random_prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(320) for _ in range(length)] for length in (1, 2, 7, 16, 17, 33, 48, 90)]


@pytest.fixture(scope="module", params=KINDS)
def small(request: pytest.FixtureRequest, small_models: dict[str, Path]) -> tuple[Model, list[list[int]]]:
    """A small model, and the answers of transformers to the random prompts, one at a time."""
    folder = small_models[request.param]
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = []
    for prompt in random_prompts():
        tokens = torch.tensor([prompt])
        everything = torch.ones_like(tokens)
        answer = reference.generate(tokens, attention_mask=everything, max_new_tokens=ANSWER, do_sample=False, pad_token_id=0)
        wanted.append(answer[0, len(prompt) :].tolist())
    assert all(len(answer) == ANSWER for answer in wanted)
    assert len({tuple(answer[-8:]) for answer in wanted}) > 1, "the model says different things"
    return Model(folder), wanted


def test_answers_alone_equal_the_reference(small: tuple[Model, list[list[int]]]) -> None:
    model, wanted = small
    assert [answers(model.engine(), [prompt])[0][0] for prompt in random_prompts()] == wanted


def test_answers_in_one_batch_equal_the_reference(small: tuple[Model, list[list[int]]]) -> None:
    model, wanted = small
    assert answers(model.engine(), random_prompts())[0] == wanted


def test_answers_from_chunked_prompts_equal_the_reference(small: tuple[Model, list[list[int]]]) -> None:
    model, wanted = small
    assert answers(model.engine(max_step_tokens=13, max_batch=5), random_prompts())[0] == wanted


def test_answers_with_a_reused_prefix_equal_the_reference(small: tuple[Model, list[list[int]]]) -> None:
    model, wanted = small
    engine = model.engine()
    answers(engine, random_prompts())
    again, cached = answers(engine, random_prompts())
    assert again == wanted
    assert cached == [0, 0, 0, 0, 16, 32, 32, 80]


def test_answers_after_a_preemption_equal_the_reference(small: tuple[Model, list[list[int]]]) -> None:
    model, wanted = small
    engine = model.engine(blocks=20)
    assert answers(engine, random_prompts())[0] == wanted
    assert engine.stats().preemptions > 0


PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWhat is 17 times 3?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName three rivers in Africa and say where they end.<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at",
    "A list of primes: 2, 3, 5, 7, 11,",
    "The committee met on Tuesday to discuss the budget. After a long debate about the library, the chair asked for a vote, and",
]


@pytest.fixture(scope="module")
def smollm2_model(smollm2: Path) -> Model:
    return Model(smollm2)


@pytest.fixture(scope="module")
def smollm2_prompts(smollm2: Path) -> list[list[int]]:
    from enginehouse_engine.text import gguf_tokenizer
    from enginehouse_engine.text.gguf_metadata import read_metadata

    tokenizer = gguf_tokenizer.build(read_metadata(smollm2))
    return [tokenizer.encode(prompt).ids for prompt in PROMPTS]


@pytest.fixture(scope="module")
def is_greedy(smollm2_float32: Path) -> Callable[[list[int], list[int]], bool]:
    reference = transformers.AutoModelForCausalLM.from_pretrained(smollm2_float32, dtype=torch.float32)

    def check(prompt: list[int], answer: list[int]) -> bool:
        with torch.inference_mode():
            best = reference(torch.tensor([prompt + answer])).logits[0].argmax(-1).tolist()
        return len(answer) == ANSWER and best[len(prompt) - 1 : -1] == answer

    return check


def test_smollm2_alone_and_batched_and_reused_and_preempted_is_greedy(
    smollm2_model: Model, smollm2_prompts: list[list[int]], is_greedy: Callable[[list[int], list[int]], bool]
) -> None:
    alone = [answers(smollm2_model.engine(), [prompt])[0][0] for prompt in smollm2_prompts[:3]]
    engine = smollm2_model.engine()
    batched, _ = answers(engine, smollm2_prompts)
    assert all(is_greedy(prompt, answer) for prompt, answer in zip(smollm2_prompts, batched, strict=True))
    assert alone == batched[:3]
    reused, cached = answers(engine, smollm2_prompts)
    assert reused == batched
    assert sum(cached) >= 16 * 4
    scarce = smollm2_model.engine(blocks=24)
    assert answers(scarce, smollm2_prompts)[0] == batched
    assert scarce.stats().preemptions > 0
