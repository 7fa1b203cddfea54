"""The prompt that stands before an answer: its text, and its tokens with their log probabilities if they are wanted.

Invariant: one entry for each token; those whose spelling is no part of the text (a special token, a part of a character) begin
where the next one begins. Pure: no sockets, no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse_engine.api.choices import ScoredToken
from enginehouse_engine.protocol import TOKEN_BYTES, PromptLogprobs, unpack_prompt_logprobs, unpack_tokens
from enginehouse_engine.text.detokenizer import Detokenizer
from enginehouse_engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Echo:
    """As the client wrote it, and as the model reads it."""

    text: str
    prompt: bytes
    """Packed token ids."""

    def first_token(self) -> int:
        """The one that has no log probability, as nothing is before it."""
        return unpack_tokens(self.prompt[:TOKEN_BYTES])[0]

    def scored(self, tokenizer: Tokenizer, logprobs: PromptLogprobs) -> list[ScoredToken]:
        """All tokens but the first, which follows none. Raises ProtocolError when ``logprobs`` are not of this prompt."""
        tokens = unpack_tokens(self.prompt)
        detokenizer = Detokenizer(tokenizer, continues=False)
        scored, read = [], len(detokenizer.feed(tokens[:1]))
        for entry in unpack_prompt_logprobs(logprobs, tokens):
            # A tokenizer that normalizes may read more characters than were written.
            scored.append(ScoredToken(entry, min(read, len(self.text))))
            read += len(detokenizer.feed((entry.token,)))
        return scored
