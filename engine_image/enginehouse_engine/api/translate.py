"""From a request of the OpenAI API to what an engine core understands.

Invariant: everything that can be refused is refused here, before anything is queued. Pure: no sockets, no tokenizer, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import msgspec

from enginehouse_engine.api import errors
from enginehouse_engine.api.schema import ChatRequest, CompletionRequest, Message, Parameters
from enginehouse_engine.decode_errors import DECODE_ERRORS
from enginehouse_engine.protocol import Sampling

DEFAULT_COMPLETION_TOKENS: Final = 16
MOST_SEQUENCES: Final = 2048
"""Answers of one request: prompts times ``n``."""
MOST_PROMPT_TOKENS: Final = MOST_SEQUENCES * 8192
"""Of all answers of one request: each has its prompt for itself. A core takes 64 MiB for so many, and 0.7 s to read them."""
MOST_ECHOED_SCORES: Final = 2**20
"""Log probabilities before the answers of one request: writing out so many takes 4 s of a thread and 100 MiB."""

_ROLES: Final[Mapping[str, str]] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Models know three roles; what OpenAI calls developer they call system."""

_HARMLESS: Final[Mapping[str, tuple[Any, ...]]] = {
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters that are refused, and the values with which they ask for what is done anyway."""

_Request = TypeVar("_Request", CompletionRequest, ChatRequest)


def decode(body: bytes, decoder: msgspec.json.Decoder[_Request]) -> _Request:
    """The request in ``body``. Raises ApiError that names the parameter."""
    try:
        request = decoder.decode(body)
    except DECODE_ERRORS as error:
        message = str(error)
        raise errors.invalid(f"The request body is not valid: {message}", param=_param(message)) from error
    for name, harmless in _HARMLESS.items():
        value = getattr(request, name, None)
        if value is not None and value not in harmless:
            raise errors.unsupported(name, f"found {_short(value)}")
    if request.stream_options is not None and not request.stream:
        raise errors.invalid("'stream_options' is only allowed with 'stream': true", param="stream_options")
    return request


def completion_prompts(request: CompletionRequest) -> list[str] | list[list[int]]:
    """All texts, or all lists of token ids. Raises ApiError."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    # One pass without a Python step for each of what may be a million numbers.
    kinds = set(map(type, prompt))
    if kinds == {str} or kinds == {list}:
        return cast(list[str] | list[list[int]], prompt)
    if kinds == {int}:
        return [cast(list[int], prompt)]
    wanted = "a text, a list of texts, a list of token ids, or a list of such lists"
    raise errors.invalid(f"'prompt' must be {wanted}, and not empty", param="prompt")


def check_completion(request: CompletionRequest) -> None:
    """What of a completion request depends on several fields. Raises ApiError."""
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise errors.unsupported("best_of", "answers are not ranked, so it can only equal 'n'")
    if request.max_tokens == 0 and not request.echo:
        raise errors.invalid("'max_tokens' is at least 1, or 0 with 'echo': true", param="max_tokens")


def chat_messages(request: ChatRequest) -> list[dict[str, str]]:
    """The conversation as chat templates expect it. Raises ApiError."""
    return [_message(message, f"messages[{place}]") for place, message in enumerate(request.messages)]


def chat_max_tokens(request: ChatRequest) -> int | None:
    """The new name counts, the old one still works. Raises ApiError when both are there and differ."""
    new, old = request.max_completion_tokens, request.max_tokens
    if new is not None and old is not None and new != old:
        raise errors.invalid("'max_tokens' is the old name of 'max_completion_tokens': give one of them", param="max_tokens")
    return old if new is None else new


def chat_logprobs(request: ChatRequest) -> int | None:
    """How many alternatives for each token; None = no log probabilities. Raises ApiError."""
    if request.top_logprobs is not None and not request.logprobs:
        raise errors.invalid("'top_logprobs' is only allowed with 'logprobs': true", param="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def answer_tokens(asked: int | None, *, prompt_tokens: int, limit: int, default: int | None, param: str) -> int:
    """Most tokens of the answer: what was asked for, else at most ``default`` (None = all) of what is left. Raises ApiError.

    ``limit`` is the context length, prompt and answer together: exactly the limit is accepted, one more is not.
    """
    left = limit - prompt_tokens
    wanted = asked if asked is not None else max(1, left if default is None else min(default, left))
    if wanted > left:
        raise errors.context_length_exceeded(limit=limit, prompt_tokens=prompt_tokens, max_tokens=wanted, param=param)
    return wanted


def sampling(
    request: Parameters,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    answer: int,
    vocab_size: int,
) -> Sampling:
    """How answer number ``answer`` of a request is generated; with a seed each answer has its own. Raises ApiError."""
    return Sampling(
        max_tokens=max_tokens,
        temperature=_or(request.temperature, 1.0),
        top_p=_or(request.top_p, 1.0),
        top_k=_or(request.top_k, 0),
        min_p=_or(request.min_p, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        logit_bias=_logit_bias(request.logit_bias or {}, vocab_size),
        seed=None if request.seed is None else (request.seed + answer) % 2**63,
        stop_token_ids=_known(tuple(request.stop_token_ids or ()), vocab_size, "stop_token_ids"),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=_min_tokens(request.min_tokens or 0, max_tokens),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def check_characters(text: str, *, longest_token: int, limit: int, param: str) -> None:
    """Raises ApiError when a prompt of so many characters cannot be within ``limit`` (tokens).

    Tokenizing takes some 80 bytes of memory for each character, so what cannot fit anyway must not get so far.
    """
    least = -(-len(text) // longest_token)
    if least > limit:
        raise errors.text_too_long(limit=limit, characters=len(text), least_tokens=least, param=param)


def check_prompt(tokens: Sequence[int], *, vocab_size: int, param: str) -> None:
    """A prompt has at least one token, and only tokens of the vocabulary. Raises ApiError."""
    if not tokens:
        raise errors.invalid("the prompt is empty: at least one token is needed to go on from", param=param)
    _known(tokens, vocab_size, param)


def stop_strings(request: Parameters) -> tuple[str, ...]:
    """The texts that end an answer."""
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())


def check_sequences(prompts: int, choices: int) -> None:
    """Raises ApiError when one request asks for too many answers."""
    if prompts * choices > MOST_SEQUENCES:
        raise errors.invalid(
            f"{prompts} prompts with n = {choices}: at most {MOST_SEQUENCES} answers in one request", param="prompt"
        )


def check_prompt_tokens(prompt_tokens: int, *, answers: int) -> None:
    """Raises ApiError when prompts of so many tokens are too much to be queued once for each of ``answers`` answers."""
    if prompt_tokens * answers > MOST_PROMPT_TOKENS:
        raise errors.invalid(
            f"{prompt_tokens} tokens of prompts with n = {answers}: at most {MOST_PROMPT_TOKENS} in one request, each counted once "
            "for each answer: ask for fewer answers",
            param="n",
        )


def check_echo(prompt_tokens: int, *, answers: int, logprobs: int) -> None:
    """Raises ApiError when the prompts' log probabilities, ``logprobs`` alternatives and one more for each token, are too many.

    ``prompt_tokens`` are those of all prompts; each stands before ``answers`` answers.
    """
    scores = prompt_tokens * answers * (1 + logprobs)
    if scores > MOST_ECHOED_SCORES:
        raise errors.invalid(
            f"'echo' with 'logprobs' would return {scores} log probabilities of prompts, at most {MOST_ECHOED_SCORES}: "
            "ask for fewer alternatives, fewer answers or shorter prompts",
            param="logprobs",
        )


def _message(message: Message, place: str) -> dict[str, str]:
    if (role := _ROLES.get(message.role)) is None:
        known = ", ".join(_ROLES)
        raise errors.invalid(f"the role of {place} is '{message.role}'; supported: {known}", param=f"{place}.role")
    for name in ("tool_calls", "tool_call_id", "function_call", "audio"):
        if getattr(message, name):
            raise errors.unsupported(f"{place}.{name}", "this server calls no tools and hears no audio")
    content = message.content
    if content is None:
        raise errors.invalid(f"{place} has no content", param=f"{place}.content")
    if not isinstance(content, str):
        for part in content:
            if part.type != "text" or part.text is None:
                raise errors.invalid(f"{place} has a part of type '{part.type}'; supported: text", param=f"{place}.content")
        content = "".join(part.text or "" for part in content)
    named = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": content, **named}


def _logit_bias(bias: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    try:
        by_id = {int(token): value for token, value in bias.items()}
    except ValueError as error:
        raise errors.invalid(f"keys of 'logit_bias' are token ids: {error}", param="logit_bias") from error
    _known(tuple(by_id), vocab_size, "logit_bias")
    return by_id


_Ids = TypeVar("_Ids", bound=Sequence[int])


def _known(tokens: _Ids, vocab_size: int, param: str) -> _Ids:
    if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
        foreign = next(token for token in tokens if not 0 <= token < vocab_size)
        raise errors.invalid(f"token id {foreign} is not in the model's vocabulary of {vocab_size} tokens", param=param)
    return tokens


def _min_tokens(min_tokens: int, max_tokens: int) -> int:
    if min_tokens > max_tokens:
        message = f"'min_tokens' is {min_tokens}, more than the {max_tokens} tokens that the answer can have"
        raise errors.invalid(message, param="min_tokens")
    return min_tokens


_Value = TypeVar("_Value", int, float)


def _or(value: _Value | None, default: _Value) -> _Value:
    return default if value is None else value


def _param(message: str) -> str | None:
    """The parameter that a decoder's message is about."""
    if found := re.search(r"at `\$\.(.+?)`$", message):
        return found[1]
    found = re.search(r"(?:unknown|required) field `(.+?)`", message)
    return found[1] if found else None


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}..."
