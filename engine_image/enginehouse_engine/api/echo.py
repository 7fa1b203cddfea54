"""The prompt that stands before an answer: its text, and its tokens with their log probabilities if they are wanted.

Invariant: one entry for each token; those whose spelling is no part of the text (a special token, a part of a character) begin
where the next one begins. Pure: no sockets, no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse_engine.api.choices import ScoredToken
from enginehouse_engine.protocol import PromptLogprobs, unpack_prompt_logprobs
from enginehouse_engine.text.detokenizer import Detokenizer
from enginehouse_engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Echo:
    """As the client wrote it, and as the model reads it."""

    text: str
    tokens: Sequence[int]

    def scored(self, tokenizer: Tokenizer, logprobs: PromptLogprobs) -> list[ScoredToken]:
        """All tokens but the first, which follows none. Raises ProtocolError when ``logprobs`` are not of this prompt."""
        offsets = self._offsets(tokenizer)[1:]
        entries = unpack_prompt_logprobs(logprobs, self.tokens)
        return [ScoredToken(entry, offset) for entry, offset in zip(entries, offsets, strict=True)]

    def _offsets(self, tokenizer: Tokenizer) -> list[int]:
        detokenizer = Detokenizer(tokenizer, continues=False)
        offsets, read = [], 0
        for token in self.tokens:
            # A tokenizer that normalizes may read more characters than were written.
            offsets.append(min(read, len(self.text)))
            read += len(detokenizer.feed((token,)))
        return offsets
