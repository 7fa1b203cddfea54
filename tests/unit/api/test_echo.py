"""Where the tokens of an echoed prompt stand in its text."""

from __future__ import annotations

from array import array

import pytest

from enginehouse_engine.api.choices import Delta
from enginehouse_engine.api.echo import Echo
from enginehouse_engine.api.formats import CompletionFormat
from enginehouse_engine.api.schema import CachedTokens, CompletionResponse, Usage
from enginehouse_engine.executor.simulated import END_TOKEN
from enginehouse_engine.protocol import PromptLogprobs, ProtocolError, pack_tokens
from enginehouse_engine.text.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def logprobs(count: int) -> PromptLogprobs:
    return PromptLogprobs(array("f", [-1.0] * count).tobytes())


@pytest.mark.parametrize(
    ("text", "tokens", "offsets"),
    [
        ("ab", [97, 98], [1]),
        ("a", [97], []),
        # A token that is no text takes no room; a part of a character begins where the character does.
        ("ab", [END_TOKEN, 97, 98], [0, 1]),
        ("aéb", [97, 0xC3, 0xA9, 98], [1, 1, 2]),
        # More was read than was written.
        ("a", [97, 98, 99], [1, 1]),
    ],
)
def test_offsets_are_places_in_the_text(text: str, tokens: list[int], offsets: list[int]) -> None:
    scored = Echo(text, pack_tokens(tokens)).scored(TOKENIZER, logprobs(len(tokens) - 1))
    assert [token.offset for token in scored] == offsets
    assert [token.logprobs.token for token in scored] == tokens[1:]


def test_scores_of_another_prompt_are_refused() -> None:
    with pytest.raises(ProtocolError, match="of 1 tokens"):
        Echo("ab", pack_tokens([97, 98])).scored(TOKENIZER, logprobs(2))


def test_a_prompt_of_one_token_has_one_entry_without_a_number() -> None:
    form = CompletionFormat(id="c", created=0, model="m", tokenizer=TOKENIZER, logprobs=True, echoes=[Echo("a", pack_tokens([97]))])
    whole = form.whole([Delta("", (), "length", logprobs(0))], Usage(1, 0, 1, CachedTokens(0)))
    assert isinstance(whole, CompletionResponse)
    shown = whole.choices[0].logprobs
    assert shown is not None
    assert (shown.tokens, shown.token_logprobs, shown.top_logprobs, shown.text_offset) == (["a"], [None], None, [0])
