"""An answer grows the same way however its tokens arrive."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine.api.choices import Choice
from enginehouse_engine.api.endpoints import ChatCompletions, Completions
from enginehouse_engine.api.errors import ApiError
from enginehouse_engine.api.schema import ChatRequest, CompletionRequest, Message
from enginehouse_engine.api.service import LONG_BODY_BYTES, ModelText, Service
from enginehouse_engine.protocol import RequestOutput, TokenLogprobs
from enginehouse_engine.text.chat_template import ChatTemplate
from enginehouse_engine.text.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


@given(
    text=st.text("ab#é", max_size=20),
    stops=st.lists(st.text("ab#é", min_size=1, max_size=3), max_size=2),
    sizes=st.lists(st.integers(1, 5), min_size=30, max_size=30),
    reason=st.sampled_from(["stop", "length"]),
    continues=st.booleans(),
    min_tokens=st.integers(0, 8),
)
def test_text_and_log_probabilities_belong_together(
    text: str, stops: list[str], sizes: list[int], reason: str, continues: bool, min_tokens: int
) -> None:
    tokens = [*text.encode(), *([256] if reason == "stop" else [])]
    choice = Choice(TOKENIZER, stops, continues=continues, min_tokens=min_tokens)
    shown, scored, ends = "", [], []
    while tokens and not choice.finished:
        size = sizes.pop()
        step, tokens = tokens[:size], tokens[size:]
        last = not tokens
        output = RequestOutput(
            "r",
            tuple(step),
            reason if last else None,
            stop_token=256 if last and reason == "stop" else None,
            logprobs=tuple(TokenLogprobs(token, -1.0) for token in step),
        )
        delta = choice.feed(output)
        shown += delta.text
        scored += delta.scored
        ends += [delta.finish_reason] if delta.finish_reason else []
    # A stop string counts that is complete after the first tokens.
    places = [(at + len(stop), at) for stop in stops for at in range(len(text)) if text.startswith(stop, at)]
    cut = min((place for place in places if len(text[: place[0]].encode()) > min_tokens), default=(0, len(text)))[1]
    assert shown == text[:cut]
    if not text and reason == "length":
        return
    assert ends == ["stop" if cut < len(text) else reason]
    # The end token of a completion is scored, as clients count on one entry for each generated token; that of a message is not.
    end = [256] if continues and reason == "stop" and cut == len(text) else []
    assert [token.logprobs.token for token in scored] == [*shown.encode(), *end]
    assert [token.offset for token in scored] == sorted(token.offset for token in scored)
    assert all(0 <= token.offset <= len(shown) for token in scored)


class _Recording:
    """A tokenizer that notes what it works on, and in which thread."""

    longest_token = 100

    def __init__(self, characters_of_a_token: int = 1) -> None:
        self._characters_of_a_token = characters_of_a_token
        self.threads: list[str] = []
        self.characters: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(TOKENIZER, name)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self.threads.append(threading.current_thread().name)
        self.characters.append(len(text))
        return TOKENIZER.encode(text, add_special_tokens=add_special_tokens)[:: self._characters_of_a_token]

    def decode(self, tokens: list[int]) -> str:
        self.threads.append(threading.current_thread().name)
        return TOKENIZER.decode(tokens)


@pytest.mark.parametrize("characters", [10, LONG_BODY_BYTES])
def test_a_long_text_is_tokenized_and_spelled_beside_the_event_loop(characters: int) -> None:
    tokenizer: Any = _Recording()
    service = Service(model_name="m", front_end=None, metrics=None)
    text = ModelText(tokenizer, ChatTemplate("{{ messages[0].content }}", special_tokens={}))

    async def plan() -> None:
        await Completions(service).plan(
            CompletionRequest(model="m", prompt="x" * characters), text, limit=1 << 20, body_bytes=characters
        )
        echoed = CompletionRequest(model="m", prompt=[120] * characters, echo=True)
        await Completions(service).plan(echoed, text, limit=1 << 20, body_bytes=characters)
        chat = ChatRequest(model="m", messages=[Message("user", "x" * characters)])
        await ChatCompletions(service).plan(chat, text, limit=1 << 20, body_bytes=characters)

    asyncio.run(plan())
    own = threading.current_thread().name
    assert [name == own for name in tokenizer.threads] == [characters < LONG_BODY_BYTES] * 3


@pytest.mark.parametrize(("characters_of_a_token", "read"), [(4, [160]), (8, [160, 900])])
def test_of_a_text_that_is_far_too_long_only_the_beginning_is_tokenized(characters_of_a_token: int, read: list[int]) -> None:
    limit = 10
    tokenizer: Any = _Recording(characters_of_a_token)
    service: Any = Service(model_name="m", front_end=None, metrics=None)
    request = CompletionRequest(model="m", prompt="x" * 900)
    with pytest.raises(ApiError) as refused:
        asyncio.run(Completions(service).plan(request, ModelText(tokenizer, None), limit=limit, body_bytes=100))
    assert refused.value.detail.code == "context_length_exceeded"
    assert tokenizer.characters == read


def test_an_echo_that_would_take_gigabytes_to_write_out_is_refused_before_a_core_hears_of_it() -> None:
    service: Any = Service(model_name="m", front_end=None, metrics=None)
    request = CompletionRequest(model="m", prompt=[[120] * 1000] * 4, n=128, echo=True, logprobs=20, max_tokens=1)
    with pytest.raises(ApiError) as refused:
        asyncio.run(Completions(service).plan(request, ModelText(TOKENIZER, None), limit=2000, body_bytes=100))
    assert (refused.value.status, refused.value.detail.param) == (400, "logprobs")


@pytest.mark.parametrize("long_chat", [False, True])
def test_answers_whose_prompts_would_take_a_gigabyte_in_a_core_are_refused_before_one_hears_of_them(long_chat: bool) -> None:
    service: Any = Service(model_name="m", front_end=None, metrics=None)
    text = ModelText(TOKENIZER, ChatTemplate("{{ messages[0].content }}", special_tokens={}))

    async def plan(n: int) -> None:
        if long_chat:
            chat = ChatRequest(model="m", messages=[Message("user", "x" * 2**18)], n=n)
            await ChatCompletions(service).plan(chat, text, limit=2**20, body_bytes=100)
        else:
            completion = CompletionRequest(model="m", prompt=[[120] * 2**16] * 4, n=n)
            await Completions(service).plan(completion, text, limit=2**17, body_bytes=100)

    asyncio.run(plan(64))
    with pytest.raises(ApiError) as refused:
        asyncio.run(plan(65))
    assert (refused.value.status, refused.value.detail.param) == (400, "n")
