"""The sampler against the distributions it should draw from, and rows against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse_engine.core.batch import uniforms
from enginehouse_engine.executor.contract import SamplingInput
from enginehouse_engine.model.sampler import sample

PER_ROW = ("temperature", "top_k", "top_p", "min_p", "uniform", "presence_penalty", "frequency_penalty", "repetition_penalty")


def settings_for(rows: int, **changes: Any) -> SamplingInput:
    values: dict[str, Any] = {
        "temperature": np.ones(rows, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "min_p": np.zeros(rows, np.float32),
        "uniform": uniforms(np.arange(rows, dtype=np.uint64), np.zeros(rows, np.uint64)),
        "presence_penalty": np.zeros(rows, np.float32),
        "frequency_penalty": np.zeros(rows, np.float32),
        "repetition_penalty": np.ones(rows, np.float32),
        "history_rows": np.zeros(0, np.int32),
        "history_tokens": np.zeros(0, np.int32),
        "history_generated": np.zeros(0, np.bool_),
        "bias_rows": np.zeros(0, np.int32),
        "bias_tokens": np.zeros(0, np.int32),
        "bias_values": np.zeros(0, np.float32),
        "logprobs": -1,
    }
    for name, value in changes.items():
        values[name] = np.full(rows, value, values[name].dtype) if name in PER_ROW and np.isscalar(value) else value
    return SamplingInput(**values)


def frequencies(logits: list[float], **changes: Any) -> np.typing.NDArray[np.float64]:
    rows = 20_000
    tokens = sample(torch.tensor(logits).repeat(rows, 1), settings_for(rows, **changes)).tokens
    return np.bincount(tokens, minlength=len(logits)) / rows


def softmax(logits: list[float]) -> np.typing.NDArray[np.float64]:
    weights = np.exp(np.array(logits) - max(logits))
    return np.asarray(weights / weights.sum())


LOGITS = [1.0, 3.0, 2.0, -1.0, 2.5]


def only(*kept: int, temperature: float = 1.0) -> np.typing.NDArray[np.float64]:
    return softmax([logit / temperature if index in kept else -np.inf for index, logit in enumerate(LOGITS)])


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, only(0, 1, 2, 3, 4)),
        ({"temperature": 0.5}, only(0, 1, 2, 3, 4, temperature=0.5)),
        ({"temperature": 1e-39}, only(1)),
        ({"temperature": 1e-39, "top_p": 0.9}, only(1)),
        ({"temperature": 3.0}, only(0, 1, 2, 3, 4, temperature=3.0)),
        ({"top_k": 2}, only(1, 4)),
        ({"top_k": 99}, only(0, 1, 2, 3, 4)),
        ({"top_k": 1}, only(1)),
        # The probabilities in falling order are 0.47, 0.28, 0.17, 0.06, 0.01.
        ({"top_p": 0.7}, only(1, 4)),
        ({"top_p": 0.8}, only(1, 4, 2)),
        ({"top_p": 0.01}, only(1)),
        ({"top_k": 3, "top_p": 0.75}, only(1, 4)),
        ({"min_p": 0.5}, only(1, 4)),
        ({"min_p": 1.0}, only(1)),
        ({"top_k": 4, "min_p": 0.3}, only(1, 4, 2)),
        ({"temperature": 0.0}, only(1)),
    ],
)
def test_tokens_are_drawn_from_the_distribution_that_was_asked_for(
    changes: dict[str, float], wanted: np.typing.NDArray[np.float64]
) -> None:
    found = frequencies(LOGITS, **changes)
    assert np.abs(found - wanted).max() < 0.015
    assert (found[wanted == 0] == 0).all()


def test_a_large_vocabulary_is_cut_at_the_same_place_as_by_sorting_it_all() -> None:
    torch.manual_seed(3)
    for spread, top_p in ((0.1, 0.9), (4.0, 0.9), (0.0, 0.5)):
        logits = torch.randn(5000) * spread
        kept = settings_for(4000, top_p=top_p)
        tokens = sample(logits.repeat(4000, 1), kept).tokens
        ordered = torch.softmax(logits, -1).sort(descending=True)
        count = int((ordered.values.cumsum(0) < top_p).sum()) + 1
        assert set(tokens.tolist()) <= set(ordered.indices[: count + 1].tolist()) or spread == 0.0
        assert len(set(tokens.tolist())) > min(count, 4000) * 0.3


def test_without_settings_the_best_token_is_taken() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 0.0]])
    assert sample(logits, None).tokens.tolist() == [1, 0]


ROW = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.3]),
        "top_k": st.sampled_from([0, 1, 5]),
        "top_p": st.sampled_from([1.0, 0.5, 0.95]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "frequency_penalty": st.sampled_from([0.0, -0.3]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "uniform": st.floats(0, 1, exclude_max=True),
        "history": st.lists(st.tuples(st.integers(0, 49), st.booleans()), max_size=6),
        "bias": st.dictionaries(st.integers(0, 49), st.sampled_from([-np.inf, -2.0, 5.0]), max_size=3),
    }
)


def batch(rows: list[dict[str, Any]]) -> SamplingInput:
    history = [(index, token, generated) for index, row in enumerate(rows) for token, generated in row["history"]]
    biases = [(index, token, value) for index, row in enumerate(rows) for token, value in row["bias"].items()]
    return settings_for(
        len(rows),
        **{name: np.array([row[name] for row in rows]).astype(np.float32) for name in PER_ROW if name not in ("top_k", "uniform")},
        top_k=np.array([row["top_k"] for row in rows], np.int32),
        uniform=np.array([row["uniform"] for row in rows], np.float64),
        history_rows=np.array([each[0] for each in history], np.int32),
        history_tokens=np.array([each[1] for each in history], np.int32),
        history_generated=np.array([each[2] for each in history], np.bool_),
        bias_rows=np.array([each[0] for each in biases], np.int32),
        bias_tokens=np.array([each[1] for each in biases], np.int32),
        bias_values=np.array([each[2] for each in biases], np.float32),
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, min_size=2, max_size=6))
def test_a_row_gets_the_same_token_alone_and_in_any_company(rows: list[dict[str, Any]]) -> None:
    generator = torch.Generator().manual_seed(len(rows))
    logits = torch.randn(len(rows), 50, generator=generator) * 2
    together = sample(logits.clone(), batch(rows)).tokens.tolist()
    alone = [sample(logits[index : index + 1].clone(), batch([row])).tokens.tolist()[0] for index, row in enumerate(rows)]
    assert together == alone
    for row, token in zip(rows, together, strict=True):
        assert row["bias"].get(token) != -np.inf


def test_penalties_follow_their_formulas() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    history = {
        "history_rows": np.zeros(4, np.int32),
        "history_tokens": np.array([0, 1, 2, 2], np.int32),
        "history_generated": np.array([False, False, True, True]),
    }
    changed = logits.clone()
    given_settings = settings_for(
        1, temperature=0.0, presence_penalty=0.25, frequency_penalty=0.5, repetition_penalty=2.0, **history
    )
    sample(changed, given_settings)
    # Repetition halves or doubles what prompt and answer hold; the other two count the answer alone.
    assert changed[0].tolist() == [1.0, -4.0, 1.0 / 2 - 2 * 0.5 - 0.25, 0.5]


def test_logprobs_are_the_models_own_whatever_is_penalized_or_forbidden() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    own = torch.log_softmax(logits, -1)[0]
    forbid = {
        "bias_rows": np.zeros(1, np.int32),
        "bias_tokens": np.zeros(1, np.int32),
        "bias_values": np.array([-np.inf], np.float32),
    }
    output = sample(logits.clone(), settings_for(1, temperature=0.0, logprobs=2, **forbid))
    assert output.tokens.tolist() == [1]
    assert output.logprobs is not None
    assert output.top_tokens is not None
    assert output.top_logprobs is not None
    assert output.logprobs.tolist() == [own[1].item()]
    assert output.top_tokens.tolist() == [[0, 1]]
    assert output.top_logprobs.tolist() == [own[:2].tolist()]


def test_more_alternatives_than_the_vocabulary_has_are_all_of_them() -> None:
    output = sample(torch.zeros(1, 3), settings_for(1, logprobs=20))
    assert output.top_tokens is not None
    assert sorted(output.top_tokens[0].tolist()) == [0, 1, 2]
