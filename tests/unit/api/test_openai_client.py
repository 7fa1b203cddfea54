"""The official client gets from the real server process what it expects of OpenAI's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from enginehouse_engine.protocol import unpack_tokens

from .conftest import ANSWER, DEADLINE_SECONDS, LIMIT, ApiServer, Core, says, says_and_goes_on


@pytest.fixture
def client(server: ApiServer, core: Core) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS) as client:
        yield client


@pytest.fixture
async def later(server: ApiServer, core: Core) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS) as client:
        yield client


HI: Any = [{"role": "user", "content": "hi"}]
RENDERED = "user: hi\nassistant:"


def test_a_completion(client: openai.OpenAI, core: Core) -> None:
    answer = client.completions.create(model="sim", prompt="hello", max_tokens=40, temperature=0, seed=7, stop=["zzz"])
    assert answer.choices[0].text == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 18, 23)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    submit = core.submits.get_nowait()
    assert bytes(unpack_tokens(submit.prompt)) == b"hello"
    assert (submit.sampling.max_tokens, submit.sampling.temperature, submit.sampling.seed) == (40, 0.0, 7)


def test_a_chat(client: openai.OpenAI, core: Core) -> None:
    answer = client.chat.completions.create(model="sim", messages=HI)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    submit = core.submits.get_nowait()
    assert bytes(unpack_tokens(submit.prompt)) == RENDERED.encode()
    assert submit.sampling.max_tokens == LIMIT - len(RENDERED)


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="sim", messages=HI, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    *body, usage = chunks
    assert body[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in body if chunk.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in body)
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == len(RENDERED) + len(ANSWER) + 1
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1


def test_a_streamed_completion_with_echo(client: openai.OpenAI) -> None:
    with client.completions.create(model="sim", prompt="hello", max_tokens=4, echo=True, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "helloThe "
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_several_prompts_and_answers(client: openai.OpenAI, core: Core) -> None:
    answer = client.completions.create(model="sim", prompt=["a", "bc"], n=2, max_tokens=3, seed=5)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "The"), (1, "The"), (2, "The"), (3, "The")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 6
    submits = [core.submits.get_nowait() for _ in range(4)]
    assert [bytes(unpack_tokens(submit.prompt)) for submit in submits] == [b"a", b"a", b"bc", b"bc"]
    assert [submit.sampling.seed for submit in submits] == [5, 6, 5, 6]
    assert len({submit.request_id for submit in submits}) == 4


def test_token_ids_as_prompts(client: openai.OpenAI, core: Core) -> None:
    client.completions.create(model="sim", prompt=[104, 105], max_tokens=1)
    answer = client.completions.create(model="sim", prompt=[[104], [105, 106]], max_tokens=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["hT", "ijT"]
    assert [unpack_tokens(core.submits.get_nowait().prompt) for _ in range(3)] == [[104, 105], [104], [105, 106]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens_ends_the_answer_and_the_work(client: openai.OpenAI, core: Core, stream: bool) -> None:
    core.behaviour = says_and_goes_on("one two three four five six")
    made: Any = client.completions.create(model="sim", prompt="x", max_tokens=40, stop=["three", "six"], stream=stream)
    choices = [chunk.choices[0] for chunk in made] if stream else made.choices
    assert "".join(choice.text for choice in choices) == "one two "
    assert choices[-1].finish_reason == "stop"
    assert core.aborts.get(timeout=DEADLINE_SECONDS) == core.submits.get_nowait().request_id


def test_a_stop_string_that_the_first_min_tokens_complete_does_not_end_the_answer(client: openai.OpenAI, core: Core) -> None:
    core.behaviour = says("one two one")
    answer = client.completions.create(model="sim", prompt="x", max_tokens=40, stop="one", extra_body={"min_tokens": 3})
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("one two ", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_withheld_for_a_stop_string_comes_at_the_end(client: openai.OpenAI, core: Core, stream: bool) -> None:
    core.behaviour = says("a##")
    made: Any = client.completions.create(model="sim", prompt="x", max_tokens=40, stop="###", stream=stream)
    choices = [chunk.choices[0] for chunk in made] if stream else made.choices
    assert "".join(choice.text for choice in choices) == "a##"


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(client: openai.OpenAI, core: Core, stream: bool) -> None:
    core.behaviour = says("aé")
    made: Any = client.chat.completions.create(model="sim", messages=HI, logprobs=True, top_logprobs=2, stream=stream)
    choices = [chunk.choices[0] for chunk in made] if stream else made.choices
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.token for entry in entries] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert bytes(byte for entry in entries for byte in entry.bytes) == "aé".encode()
    assert [(top.token, top.logprob) for top in entries[0].top_logprobs] == [("a", -0.5), ("b", -1.5)]
    assert core.submits.get_nowait().sampling.logprobs == 2


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs_stop_with_the_text(client: openai.OpenAI, core: Core, stream: bool) -> None:
    core.behaviour = says("abcdef")
    made: Any = client.completions.create(model="sim", prompt="x", max_tokens=40, logprobs=1, stop="de", stream=stream)
    choices = [chunk.choices[0] for chunk in made] if stream else made.choices
    logprobs = [choice.logprobs for choice in choices if choice.logprobs]
    assert "".join(choice.text for choice in choices) == "abc"
    assert [token for part in logprobs for token in part.tokens] == ["a", "b", "c"]
    assert [offset for part in logprobs for offset in part.text_offset] == [0, 1, 2]
    assert [top for part in logprobs for top in part.top_logprobs or []] == [{"a": -0.5}, {"b": -0.5}, {"c": -0.5}]


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_is_scored_like_the_answer(client: openai.OpenAI, core: Core, stream: bool) -> None:
    core.behaviour = says("déf")
    made: Any = client.completions.create(
        model="sim", prompt=["aé", "xyz"], max_tokens=2, logprobs=1, echo=True, temperature=0, stream=stream
    )
    parts = [choice for chunk in made for choice in chunk.choices] if stream else made.choices
    first, second = ([part for part in parts if part.index == index] for index in (0, 1))
    assert "".join(part.text for part in first) == "aéd\N{REPLACEMENT CHARACTER}"
    assert first[0].text.startswith("aé")
    assert second[0].text.startswith("xyz")
    assert first[-1].finish_reason == "length"
    logprobs = [part.logprobs for part in first]
    assert [token for part in logprobs for token in part.tokens] == ["a", "bytes:\\xc3", "bytes:\\xa9", "d", "bytes:\\xc3"]
    assert [logprob for part in logprobs for logprob in part.token_logprobs] == [None, -1, -2, -0.5, -0.5]
    assert [offset for part in logprobs for offset in part.text_offset] == [0, 1, 1, 2, 3]
    tops = [top for part in logprobs for top in part.top_logprobs]
    assert tops == [None, {"bytes:\\xc3": -1}, {"bytes:\\xa9": -2}, {"d": -0.5}, {"bytes:\\xc3": -0.5}]
    assert [core.submits.get_nowait().sampling.prompt_logprobs for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_only_a_prompt_is_scored(client: openai.OpenAI, core: Core, stream: bool) -> None:
    """As evaluation harnesses ask: token ids, and no answer."""
    made: Any = client.completions.create(
        model="sim", prompt=[[104], [105, 106]], max_tokens=0, logprobs=0, echo=True, stream=stream
    )
    choices = sorted(
        [choice for chunk in made for choice in chunk.choices] if stream else made.choices, key=lambda choice: int(choice.index)
    )
    assert [(choice.text, choice.finish_reason) for choice in choices] == [("h", "length"), ("ij", "length")]
    assert [choice.logprobs.tokens for choice in choices] == [["h"], ["i", "j"]]
    assert [choice.logprobs.token_logprobs for choice in choices] == [[None], [None, -1]]
    assert [choice.logprobs.top_logprobs for choice in choices] == [None, None]
    assert [core.submits.get_nowait().sampling.max_tokens for _ in range(2)] == [0, 0]
    if not stream:
        assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (3, 0)


def test_a_prompt_of_exactly_the_context_can_be_echoed(client: openai.OpenAI, core: Core) -> None:
    answer = client.completions.create(model="sim", prompt="x" * LIMIT, max_tokens=0, logprobs=1, echo=True)
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == LIMIT
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="sim", prompt="x" * (LIMIT + 1), max_tokens=0, logprobs=1, echo=True)
    assert refused.value.code == "context_length_exceeded"


def test_the_end_token_of_a_completion_is_scored(client: openai.OpenAI, core: Core) -> None:
    """Clients that echo a prompt cut off one entry for each generated token, whether or not it is text."""
    core.behaviour = says("a")
    answer = client.completions.create(model="sim", prompt="x", max_tokens=5, logprobs=1, echo=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("xa", "stop")
    assert logprobs.token_logprobs == [None, -0.5, -0.5]
    assert logprobs.text_offset == [0, 1, 2]


def test_characters_never_come_in_halves(client: openai.OpenAI, core: Core) -> None:
    core.behaviour = says("日本 😀")
    with client.chat.completions.create(model="sim", messages=HI, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert [piece for piece in pieces if piece] == ["日", "本", " ", "😀"]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("sim", "model", "enginehouse")
    assert model.model_extra == {"max_model_len": LIMIT}
    assert client.models.retrieve("sim").id == "sim"


def test_exactly_the_context_is_accepted_and_one_token_more_is_not(client: openai.OpenAI, core: Core) -> None:
    core.behaviour = says("y" * 100)
    answer = client.completions.create(model="sim", prompt="x" * 14, max_tokens=LIMIT - 14)
    assert answer.usage is not None
    assert answer.usage.total_tokens == LIMIT
    core.submits.get_nowait()
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="sim", prompt="x" * 14, max_tokens=LIMIT - 13)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "prompt"
    assert f"maximum context length is {LIMIT} tokens. However, you requested {LIMIT + 1} tokens" in refused.value.message
    assert core.submits.empty()


def test_a_prompt_that_leaves_no_room_is_refused(client: openai.OpenAI, core: Core) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="sim", messages=[{"role": "user", "content": "x" * 10_000}])
    assert refused.value.code == "context_length_exceeded"
    assert core.submits.empty()


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.completions.create(model="gpt", prompt="x")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_the_request_id_comes_back(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model="sim", prompt="x", extra_headers={"x-request-id": "mine-1"})
    assert raw.headers["x-request-id"] == "mine-1"
    assert client.completions.create(model="sim", prompt="x")._request_id.startswith("req-")


def test_extensions_reach_the_core(client: openai.OpenAI, core: Core) -> None:
    extensions = {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [65]}
    client.completions.create(model="sim", prompt="x", logit_bias={"66": 5}, extra_body=extensions)
    sampling = core.submits.get_nowait().sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (3, 0.1, 1.5)
    assert (sampling.min_tokens, sampling.ignore_eos, sampling.stop_token_ids) == (2, True, (65,))
    assert sampling.logit_bias == {66: 5.0}
    assert sampling.max_tokens == 16


async def test_the_asynchronous_client_streams_side_by_side(later: openai.AsyncOpenAI) -> None:
    import asyncio

    async def ask(content: str) -> str:
        chat: Any = [{"role": "user", "content": content}]
        stream = await later.chat.completions.create(model="sim", messages=chat, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*(ask(f"q{number}") for number in range(20))) == [ANSWER] * 20
