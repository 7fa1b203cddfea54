"""Requests and responses of the OpenAI API, as far as this server speaks it.

Invariant: a parameter is obeyed, refused by name, or listed as ignored in ``docs/reference/http-api.md``; one that is not declared
here is refused. What needs more than one field to judge is in ``translate.py``.
Source of names and ranges: openai-openapi; the extensions are those of vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

MOST_CHOICES: Final = 128
MOST_LOGPROBS: Final = 20
MOST_BIASES: Final = 300

_INT64: Final = 2**63 - 1
_TOKEN_ID: Final = 2**31 - 1

Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
TokenId = Annotated[int, Meta(ge=0, le=_TOKEN_ID)]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``include_obfuscation`` is ignored: nothing is added to chunks."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Parameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chat and plain completions have in common. A null means the same as an absent field."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=_TOKEN_ID)] | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=MOST_BIASES)] | None = None
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None

    # Extensions
    top_k: Annotated[int, Meta(ge=0, le=_TOKEN_ID)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=_TOKEN_ID)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None

    # Accepted and ignored: they do not change what is generated.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class CompletionRequest(Parameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | TokenId | list[TokenId]]
    max_tokens: Annotated[int, Meta(ge=0, le=_TOKEN_ID)] | None = None
    """0 = only the echoed prompt."""
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None

    # Refused, unless they ask for what is done anyway.
    suffix: Any = None
    best_of: Any = None


class ContentPart(Struct, frozen=True):
    """One part of a message; only text is understood, the others are refused by their type."""

    type: str
    text: str | None = None


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None


class ChatRequest(Parameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=_TOKEN_ID)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None

    # Refused, unless they ask for what is done anyway.
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CachedTokens(Struct, frozen=True):
    """Tokens of the prompt whose keys and values were reused."""

    cached_tokens: int


class Usage(Struct, frozen=True):
    """Tokens of prompts and answers. A prompt counts once, however many answers it got."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionLogprobs(Struct, frozen=True):
    """Four lists, one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """Null for the first token of an echoed prompt: nothing is before it."""
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Struct, frozen=True):
    """One answer, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class CompletionResponse(Struct, frozen=True, kw_only=True):
    """Whole or chunk; ``usage`` is unset in chunks when nobody asked for it."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class TopLogprob(Struct, frozen=True):
    """A token and its log probability; ``bytes`` puts together characters that are cut across tokens."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct, frozen=True):
    """The chosen token at one position, and the best alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Log probabilities of a message's tokens."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AnswerMessage(Struct, frozen=True):
    """The assistant's message."""

    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatResponse(Struct, frozen=True, kw_only=True):
    """The whole answer."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class MessageDelta(Struct, frozen=True):
    """What a chunk adds to the assistant's message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """What a chunk adds to one answer."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class Model(Struct, frozen=True, kw_only=True):
    """An entry of ``/v1/models``; ``max_model_len`` (tokens) is the common extension, null until the engine serves."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "enginehouse"
    max_model_len: int | None


class ModelList(Struct, frozen=True):
    """``GET /v1/models``."""

    data: list[Model]
    object: str = "list"


completion_request = msgspec.json.Decoder(CompletionRequest)
chat_request = msgspec.json.Decoder(ChatRequest)
