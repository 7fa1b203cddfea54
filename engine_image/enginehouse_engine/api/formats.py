"""Deltas and answers in the two formats of the OpenAI API: chat and plain completions, whole and as chunks of a stream.

Invariant: id, time and model are the same in every chunk of a response. Pure: no sockets, no clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, Struct, UnsetType

from enginehouse_engine.api.choices import Delta, ScoredToken
from enginehouse_engine.api.echo import Echo
from enginehouse_engine.api.schema import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatResponse,
    ChatTokenLogprob,
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    MessageDelta,
    TopLogprob,
    Usage,
)
from enginehouse_engine.text.tokenizer import Tokenizer


@dataclass(kw_only=True)
class Format(ABC):
    """``logprobs``: somebody asked for them. ``usage_chunk``: the stream's last chunk carries the usage."""

    id: str
    created: int
    model: str
    tokenizer: Tokenizer
    logprobs: bool = False
    usage_chunk: bool = False

    @abstractmethod
    def chunks(self, index: int, delta: Delta) -> list[Struct]:
        """What a stream says about ``delta``; may be nothing."""

    @abstractmethod
    def last_chunk(self, usage: Usage) -> Struct:
        """The chunk with the usage."""

    @abstractmethod
    def whole(self, answers: Sequence[Delta], usage: Usage) -> Struct:
        """The response that is no stream; one delta with everything for each answer."""

    @property
    def _no_usage(self) -> UnsetType | None:
        return None if self.usage_chunk else UNSET

    def _name(self, token: int) -> tuple[str, list[int]]:
        """A token as text, and its bytes; one that is no text by itself is named by its bytes, as OpenAI does."""
        spelled = self.tokenizer.token_bytes(token)
        try:
            return spelled.decode(), list(spelled)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled), list(spelled)


@dataclass(kw_only=True)
class ChatFormat(Format):
    """``chat.completion`` and ``chat.completion.chunk``."""

    _begun: set[int] = field(default_factory=set)

    def chunks(self, index: int, delta: Delta) -> list[Struct]:
        choices = []
        if index not in self._begun:
            self._begun.add(index)
            choices.append(ChatChunkChoice(index, MessageDelta(role="assistant", content="")))
        if delta.text or delta.scored:
            choices.append(ChatChunkChoice(index, MessageDelta(content=delta.text), self._logprobs(delta.scored)))
        if delta.finish_reason is not None:
            choices.append(ChatChunkChoice(index, MessageDelta(), finish_reason=delta.finish_reason))
        return [self._chunk([choice], self._no_usage) for choice in choices]

    def last_chunk(self, usage: Usage) -> Struct:
        return self._chunk([], usage)

    def whole(self, answers: Sequence[Delta], usage: Usage) -> Struct:
        choices = [
            ChatChoice(index, AnswerMessage(answer.text), self._logprobs(answer.scored), answer.finish_reason or "stop")
            for index, answer in enumerate(answers)
        ]
        return ChatResponse(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | UnsetType | None) -> Struct:
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)

    def _logprobs(self, scored: Sequence[ScoredToken]) -> ChatLogprobs | None:
        return ChatLogprobs([self._scored(token) for token in scored]) if self.logprobs else None

    def _scored(self, scored: ScoredToken) -> ChatTokenLogprob:
        entry = scored.logprobs
        text, spelled = self._name(entry.token)
        top = [
            TopLogprob(name, logprob, spelling)
            for token, logprob in zip(entry.top_tokens, entry.top_logprobs, strict=True)
            for name, spelling in [self._name(token)]
        ]
        return ChatTokenLogprob(text, entry.logprob, spelled, top)


@dataclass(kw_only=True)
class CompletionFormat(Format):
    """``text_completion``. ``echoes``: the prompt for each answer, to stand before it; empty = no echo."""

    echoes: Sequence[Echo] = ()
    _begun: set[int] = field(default_factory=set)

    def chunks(self, index: int, delta: Delta) -> list[Struct]:
        begins = index not in self._begun
        self._begun.add(index)
        if not (self.echoes and begins) and not delta.text and not delta.scored and delta.finish_reason is None:
            return []
        return [self._response([self._choice(index, delta, begins=begins)], self._no_usage)]

    def last_chunk(self, usage: Usage) -> Struct:
        return self._response([], usage)

    def whole(self, answers: Sequence[Delta], usage: Usage) -> Struct:
        return self._response([self._choice(index, answer, begins=True) for index, answer in enumerate(answers)], usage)

    def _choice(self, index: int, delta: Delta, *, begins: bool) -> CompletionChoice:
        echo = self.echoes[index] if self.echoes else None
        if echo is None:
            return CompletionChoice(index, delta.text, self._logprobs(delta.scored), delta.finish_reason)
        scored = [ScoredToken(token.logprobs, len(echo.text) + token.offset) for token in delta.scored]
        if not begins:
            return CompletionChoice(index, delta.text, self._logprobs(scored), delta.finish_reason)
        first = None
        if delta.prompt_logprobs is not None:
            first = echo.first_token()
            scored = echo.scored(self.tokenizer, delta.prompt_logprobs) + scored
        return CompletionChoice(index, echo.text + delta.text, self._logprobs(scored, first=first), delta.finish_reason)

    def _response(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Struct:
        return CompletionResponse(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)

    def _logprobs(self, scored: Sequence[ScoredToken], *, first: int | None = None) -> CompletionLogprobs | None:
        """``first``: a prompt's first token, which stands before the scored ones."""
        if not self.logprobs:
            return None
        entries = [token.logprobs for token in scored]
        before = [] if first is None else [self._name(first)[0]]
        nothing = [None] * len(before)
        tops = [
            {self._name(token)[0]: logprob for token, logprob in zip(entry.top_tokens, entry.top_logprobs, strict=True)}
            for entry in entries
        ]
        return CompletionLogprobs(
            tokens=[*before, *(self._name(entry.token)[0] for entry in entries)],
            token_logprobs=[*nothing, *(entry.logprob for entry in entries)],
            top_logprobs=[*nothing, *tops] if any(tops) else None,
            text_offset=[0] * len(before) + [token.offset for token in scored],
        )
