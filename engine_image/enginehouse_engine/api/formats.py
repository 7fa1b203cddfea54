"""Deltas and answers in the two formats of the OpenAI API: chat and plain completions, whole and as chunks of a stream.

Invariant: id, time and model are the same in every chunk of a response. Pure: no sockets, no clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, Struct, UnsetType

from enginehouse_engine.api.choices import Delta, ScoredToken
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
    """``text_completion``. ``echoes``: the prompt's text for each answer, to stand before it; empty = no echo."""

    echoes: Sequence[str] = ()
    _begun: set[int] = field(default_factory=set)

    def chunks(self, index: int, delta: Delta) -> list[Struct]:
        text = delta.text
        if self.echoes and index not in self._begun:
            self._begun.add(index)
            text = self.echoes[index] + text
        if not text and not delta.scored and delta.finish_reason is None:
            return []
        return [self._response([CompletionChoice(index, text, self._logprobs(delta.scored), delta.finish_reason)], self._no_usage)]

    def last_chunk(self, usage: Usage) -> Struct:
        return self._response([], usage)

    def whole(self, answers: Sequence[Delta], usage: Usage) -> Struct:
        echoes = self.echoes or [""] * len(answers)
        choices = [
            CompletionChoice(index, echo + answer.text, self._logprobs(answer.scored), answer.finish_reason)
            for index, (echo, answer) in enumerate(zip(echoes, answers, strict=True))
        ]
        return self._response(choices, usage)

    def _response(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Struct:
        return CompletionResponse(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)

    def _logprobs(self, scored: Sequence[ScoredToken]) -> CompletionLogprobs | None:
        if not self.logprobs:
            return None
        entries = [token.logprobs for token in scored]
        tops = [
            {self._name(token)[0]: logprob for token, logprob in zip(entry.top_tokens, entry.top_logprobs, strict=True)}
            for entry in entries
        ]
        return CompletionLogprobs(
            tokens=[self._name(entry.token)[0] for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            top_logprobs=tops if any(tops) else None,
            text_offset=[token.offset for token in scored],
        )
