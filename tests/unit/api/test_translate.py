"""From requests to sequences: pure tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse_engine.api import translate
from enginehouse_engine.api.errors import ApiError
from enginehouse_engine.api.schema import chat_request, completion_request
from enginehouse_engine.protocol import Sampling

LIMIT = 100


@pytest.mark.parametrize(
    ("asked", "prompt", "default", "answer"),
    [
        (None, 10, None, 90),  # Chat: all that is left
        (None, 99, None, 1),
        (None, 10, 16, 16),  # Completions: as OpenAI does
        (None, 90, 16, 10),  # ... but never more than is left
        (90, 10, None, 90),  # Exactly the limit
        (1, 99, 16, 1),
        (91, 10, None, None),  # One more
        (1, 100, None, None),
        (None, 100, None, None),
        (None, 100, 16, None),
        (None, 5000, 16, None),
        (2**31 - 1, 1, None, None),
    ],
)
def test_prompt_and_answer_share_the_context(asked: int | None, prompt: int, default: int | None, answer: int | None) -> None:
    def compute() -> int:
        return translate.answer_tokens(asked, prompt_tokens=prompt, limit=LIMIT, default=default, param="prompt")

    if answer is not None:
        assert compute() == answer
        return
    with pytest.raises(ApiError) as refused:
        compute()
    assert (refused.value.status, refused.value.detail.code, refused.value.detail.param) == (
        400,
        "context_length_exceeded",
        "prompt",
    )
    wanted = 1 if asked is None else asked
    assert f"maximum context length is 100 tokens. However, you requested {prompt + wanted} tokens" in str(refused.value)


def _chat(**fields: Any) -> Any:
    return translate.decode(
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}).encode(), chat_request
    )


def _completion(**fields: Any) -> Any:
    return translate.decode(json.dumps({"model": "m", "prompt": "x", **fields}).encode(), completion_request)


def _sampling(request: Any, answer: int = 0) -> Sampling:
    return translate.sampling(request, max_tokens=5, logprobs=None, answer=answer, vocab_size=300)


def test_nothing_asked_for_is_openais_default() -> None:
    assert _sampling(_chat()) == Sampling(max_tokens=5)
    assert _sampling(_chat(temperature=None, top_p=None, seed=None, logit_bias=None, stop=None)) == Sampling(max_tokens=5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_p": 0.5, "top_k": 4, "min_p": 0.2}, {"top_p": 0.5, "top_k": 4, "min_p": 0.2}),
        ({"presence_penalty": -2, "frequency_penalty": 1.5}, {"presence_penalty": -2.0, "frequency_penalty": 1.5}),
        ({"logit_bias": {"7": -100, "8": 1.5}}, {"logit_bias": {7: -100.0, 8: 1.5}}),
        ({"stop_token_ids": [1, 299]}, {"stop_token_ids": (1, 299)}),
        ({"seed": 3}, {"seed": 3}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
    ],
)
def test_what_is_asked_for_is_passed_on(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    for request in (_chat(**fields), _completion(**fields)):
        assert _sampling(request) == Sampling(max_tokens=5, **expected)


def test_no_more_than_300_tokens_are_biased() -> None:
    """Each costs every step time, and with ``n`` once for each answer: without a bound one request could hold up all others."""
    assert len(_sampling(_chat(logit_bias={str(token): 1 for token in range(300)})).logit_bias) == 300
    with pytest.raises(ApiError) as refused:
        _chat(logit_bias={str(token): 1 for token in range(301)})
    assert (refused.value.status, refused.value.detail.param) == (400, "logit_bias")


def test_each_answer_has_its_own_seed_and_the_same_one_every_time() -> None:
    request = _chat(seed=2**63 - 1, n=3)
    assert [_sampling(request, answer).seed for answer in range(3)] == [2**63 - 1, 0, 1]
    assert [_sampling(_chat(n=3), answer).seed for answer in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("x", ["x"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts(prompt: Any, expected: Any) -> None:
    assert translate.completion_prompts(_completion(prompt=prompt)) == expected


@pytest.mark.parametrize("prompt", [[], ["a", 1], [1, [1]], [["a"]], 5, {"a": 1}, None, [1.5], [-1], [2**40]])
def test_prompts_of_no_known_form_are_refused(prompt: Any) -> None:
    with pytest.raises(ApiError) as refused:
        translate.completion_prompts(_completion(prompt=prompt))
    assert refused.value.status == 400
    assert (refused.value.detail.param or "").startswith("prompt")


@pytest.mark.parametrize(("characters", "accepted"), [(0, True), (10 * LIMIT, True), (10 * LIMIT + 1, False)])
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(characters: int, accepted: bool) -> None:
    """Tokenizing takes 80 bytes of memory for each character: a long enough body would end the API server."""
    if accepted:
        translate.check_characters("x" * characters, longest_token=10, limit=LIMIT, param="prompt")
        return
    with pytest.raises(ApiError, match="at least 101 tokens") as refused:
        translate.check_characters("x" * characters, longest_token=10, limit=LIMIT, param="prompt")
    assert (refused.value.status, refused.value.detail.code) == (400, "context_length_exceeded")


@pytest.mark.parametrize(("answers", "logprobs", "accepted"), [(1, 7, True), (1, 8, False), (8, 0, True), (128, 0, False)])
def test_no_more_scores_of_prompts_are_promised_than_can_be_written_out(answers: int, logprobs: int, accepted: bool) -> None:
    if accepted:
        translate.check_echo(131_072, answers=answers, logprobs=logprobs)
        return
    with pytest.raises(ApiError, match="fewer alternatives") as refused:
        translate.check_echo(131_072, answers=answers, logprobs=logprobs)
    assert (refused.value.status, refused.value.detail.param) == (400, "logprobs")


def test_the_new_name_of_max_tokens_counts() -> None:
    assert translate.chat_max_tokens(_chat()) is None
    assert translate.chat_max_tokens(_chat(max_tokens=4)) == 4
    assert translate.chat_max_tokens(_chat(max_completion_tokens=3)) == 3
    assert translate.chat_max_tokens(_chat(max_completion_tokens=3, max_tokens=3)) == 3


def test_log_probabilities_of_a_chat() -> None:
    assert translate.chat_logprobs(_chat()) is None
    assert translate.chat_logprobs(_chat(logprobs=False)) is None
    assert translate.chat_logprobs(_chat(logprobs=True)) == 0
    assert translate.chat_logprobs(_chat(logprobs=True, top_logprobs=20)) == 20


def test_stop_strings_are_one_or_many() -> None:
    assert translate.stop_strings(_chat()) == ()
    assert translate.stop_strings(_chat(stop="a")) == ("a",)
    assert translate.stop_strings(_chat(stop=["a", "b"])) == ("a", "b")


def test_every_error_has_openais_four_keys() -> None:
    with pytest.raises(ApiError) as refused:
        _chat(nonsense=1)
    body = json.loads(refused.value.body())
    assert body == {
        "error": {
            "message": "The request body is not valid: Object contains unknown field `nonsense`",
            "type": "invalid_request_error",
            "param": "nonsense",
            "code": None,
        }
    }
