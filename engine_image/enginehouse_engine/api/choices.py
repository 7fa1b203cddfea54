"""One answer of a request while it grows: tokens in, text out, ended by the model or by a stop string.

Invariant: the text of all deltas together is the answer; each visible token's log probability comes out exactly once, with or after
the text that it belongs to. Pure: no sockets, no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse_engine.protocol import PromptLogprobs, RequestOutput, TokenLogprobs
from enginehouse_engine.text.detokenizer import Detokenizer, StopStrings
from enginehouse_engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ScoredToken:
    """A token of the answer: its log probabilities, and where its text begins (characters from the answer's start)."""

    logprobs: TokenLogprobs
    offset: int


@dataclass(frozen=True)
class Delta:
    """What an output added to an answer."""

    text: str
    scored: tuple[ScoredToken, ...] = ()
    finish_reason: str | None = None
    prompt_logprobs: PromptLogprobs | None = None
    """Of the prompt, with the first delta, if asked for."""

    @property
    def prompt_bytes(self) -> int:
        """Of the prompt's log probabilities: many take long to write out."""
        return 0 if self.prompt_logprobs is None else len(self.prompt_logprobs.logprobs) + len(self.prompt_logprobs.top_tokens)


class Choice:
    """The state of one answer."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, continues: bool, min_tokens: int) -> None:
        """``continues``: it is no message but goes on with the prompt's text, and its end token counts among the scored ones.

        ``min_tokens``: a stop string that so many tokens complete does not end it.
        """
        self._min_tokens = min_tokens
        self._scores_end = continues
        self._detokenizer = Detokenizer(tokenizer, continues=continues)
        self._stops = StopStrings(stops)
        self._pending: list[ScoredToken] = []
        self._read = 0
        self._shown = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.finished = False

    def feed(self, output: RequestOutput) -> Delta:
        """What ``output`` adds. Nothing is added after the end."""
        if self.finished:
            return Delta("")
        early = max(0, self._min_tokens - self.completion_tokens)
        self.completion_tokens += len(output.tokens)
        self.cached_tokens += output.cached_tokens
        tokens = output.tokens[:-1] if output.stop_token is not None else output.tokens
        shown = self._stops.feed(self._read_tokens(tokens[:early], output.logprobs[:early]), may_end=False)
        text = self._read_tokens(tokens[early:], output.logprobs[early:])
        if self._scores_end and len(output.logprobs) > len(tokens):
            self._pending.append(ScoredToken(output.logprobs[-1], self._read))
        if output.finish_reason is not None:
            text += self._detokenizer.finish()
        shown += self._stops.feed(text)
        reason = output.finish_reason
        if self._stops.stopped:
            reason = "stop"
        elif reason is not None:
            shown += self._stops.finish()
        self._shown += len(shown)
        self.finished = reason is not None
        return Delta(shown, self._scored(), reason, output.prompt_logprobs)

    def _read_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> str:
        if not logprobs:
            return self._detokenizer.feed(tokens)
        pieces = []
        for token, entry in zip(tokens, logprobs, strict=False):
            self._pending.append(ScoredToken(entry, self._read))
            pieces.append(self._detokenizer.feed((token,)))
            self._read += len(pieces[-1])
        return "".join(pieces)

    def _scored(self) -> tuple[ScoredToken, ...]:
        """Those whose text is shown. What a stop string cut off is dropped with its text."""
        complete = self.finished and not self._stops.stopped
        count = sum(1 for token in self._pending if complete or token.offset < self._shown)
        out, self._pending = self._pending[:count], self._pending[count:]
        return tuple(out)
