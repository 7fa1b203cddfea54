"""Every message between an API server and an engine core, and the one encoder and decoder for them.

Invariant: a message is one msgpack map of a tagged struct; fields may be added (unknown ones are ignored, new ones have
defaults), never change their meaning. Token ids travel as packed little-endian 32-bit integers, so that a prompt of 8,192
tokens is one copy and not 8,192 objects.
Does not open sockets and does not know who sends what: see ``docs/wire-protocol.md`` section 5.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from enginehouse_engine.decode_errors import DECODE_ERRORS

PROTOCOL_VERSION: Final = 1
TOKEN_BYTES: Final = 4
"""Of a token id in a prompt, and of a log probability."""


class ProtocolError(Exception):
    """A frame that is not what this protocol allows: says what was wanted and what was found."""


def pack_tokens(tokens: list[int] | tuple[int, ...]) -> bytes:
    """Token ids (each 0 <= id < 2**31) as little-endian int32 bytes."""
    return array("i", tokens).tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """The inverse of :func:`pack_tokens`. Raises ProtocolError when the length is no multiple of four bytes."""
    if len(packed) % TOKEN_BYTES:
        raise ProtocolError(f"token ids come in 4-byte steps, found {len(packed)} bytes")
    tokens = array("i")
    tokens.frombytes(packed)
    return tokens.tolist()


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token of a request is chosen. Temperature 0 is greedy; everything else then only filters."""

    max_tokens: int
    """0 = only the prompt is computed."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 = all tokens."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    """Absent = a seed nobody can predict; the engine core draws it once per request."""
    stop_token_ids: tuple[int, ...] = ()
    """Ends the request, besides the model's own end tokens; the stop token is the last one reported."""
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    """How many alternatives per token; 0 = only the chosen token's; absent = none."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position: the chosen token's, and the best alternatives in falling order."""

    token: int
    logprob: float
    top_tokens: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class PromptLogprobs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of every prompt token but the first, in one piece: some thousand tokens would be as many objects otherwise."""

    logprobs: bytes
    """float32 each, little-endian like all that follows."""
    alternatives: int = 0
    """So many for each token, in falling order."""
    top_tokens: bytes = b""
    """As of :func:`pack_tokens`."""
    top_logprobs: bytes = b""


def unpack_prompt_logprobs(packed: PromptLogprobs, prompt: Sequence[int]) -> list[TokenLogprobs]:
    """Of the tokens of ``prompt`` after the first. Raises ProtocolError when they are those of another prompt."""
    wanted, width = len(prompt) - 1, packed.alternatives
    found = [len(part) for part in (packed.logprobs, packed.top_tokens, packed.top_logprobs)]
    expected = [TOKEN_BYTES * count for count in (wanted, wanted * width, wanted * width)]
    if found != expected:
        raise ProtocolError(f"log probabilities of {wanted} tokens with {width} alternatives have {expected} bytes, found {found}")
    logprobs, top_logprobs = array("f", packed.logprobs), array("f", packed.top_logprobs)
    top_tokens = array("i", packed.top_tokens)
    tops = [slice(place * width, (place + 1) * width) for place in range(wanted)]
    return [
        TokenLogprobs(token, logprob, tuple(top_tokens[top]), tuple(top_logprobs[top]))
        for token, logprob, top in zip(prompt[1:], logprobs, tops, strict=True)
    ]


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of a core: who it is and what it can take. The front ends apply ``max_context_length`` from then on."""

    version: int
    replica_uid: str
    rank: int
    incarnation: int
    config_hash: str
    """Of everything that must agree between processes: model, revision, dtype, parallel shape."""
    max_context_length: int
    """Tokens of prompt and answer together that always fit."""
    kv_blocks: int
    """Blocks a request may own: the reserved block is not counted."""
    block_size: int
    max_batch: int
    """Most requests running at once."""
    stats: StepStats | None = None
    """The figures of now: a front end may come late."""


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """The front end will send requests to this core."""

    version: int
    front_end: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The front end will not; the core reports the reason as its failure and exits."""

    reason: str


class Submit(msgspec.Struct, frozen=True, tag="submit", omit_defaults=True):
    """One sequence to generate. A front end splits ``n`` answers into ``n`` of these."""

    request_id: str
    prompt: bytes
    """:func:`pack_tokens` of the prompt's token ids; at least one."""
    sampling: Sampling


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Forget these requests. No output follows; unknown ids are ignored, since an answer may be on its way."""

    request_ids: tuple[str, ...]


class RequestOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one step added to one request. After ``finish_reason`` nothing follows."""

    request_id: str
    tokens: tuple[int, ...] = ()
    finish_reason: str | None = None
    """``stop`` (end or stop token), ``length``; ``refused`` (it can never run, whoever asks again) or ``error`` (a fault)."""
    stop_token: int | None = None
    """The token that ended it: also the last of ``tokens``, not part of the text."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None
    """Given with the first output, if asked for."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were reused; given with the first token."""
    error: str = ""
    """Why it was refused, or what broke."""
    context_limit: int | None = None
    """Refused because prompt and answer together exceed so many tokens."""


class StepStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """The scheduler's figures after a step, for ``/metrics``. Counters only grow."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    steps: int = 0
    model_seconds: float = 0.0
    """Spent in the executor."""
    outside_model_seconds: float = 0.0
    """Spent between two steps of the executor while there was work: scheduling, messages, whatever else."""


class Outputs(msgspec.Struct, frozen=True, tag="outputs", omit_defaults=True):
    """One message per step and front end."""

    outputs: tuple[RequestOutput, ...] = ()
    stats: StepStats | None = None


_Message = TypeVar("_Message")

FromCore = Hello | Outputs
ToCore = Welcome | Refused | Submit | Abort

_encoder = msgspec.msgpack.Encoder()
_from_core: msgspec.msgpack.Decoder[FromCore] = msgspec.msgpack.Decoder(FromCore)
_to_core: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)


def encode(message: FromCore | ToCore) -> bytes:
    """One payload frame."""
    return _encoder.encode(message)


def decode_from_core(frames: list[bytes]) -> FromCore:
    """The message in the frames that follow the routing identity. Raises ProtocolError."""
    return _decode(frames, _from_core)


def decode_to_core(frames: list[bytes]) -> ToCore:
    """The message a core received. Raises ProtocolError."""
    return _decode(frames, _to_core)


def _decode(frames: list[bytes], decoder: msgspec.msgpack.Decoder[_Message]) -> _Message:
    if len(frames) != 1:
        raise ProtocolError(f"a message is exactly one frame, found {len(frames)}")
    try:
        return decoder.decode(frames[0])
    except DECODE_ERRORS as error:
        raise ProtocolError(f"undecodable message of {len(frames[0])} bytes: {error}") from error
