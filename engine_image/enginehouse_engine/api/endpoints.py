"""The two routes that generate: ``/v1/completions`` and ``/v1/chat/completions``, from body to response.

Invariant: everything that can be refused is refused before a core hears of the request; what takes longer with a longer body, but
for reading it, is done in a thread, so that other requests go on. Does not know who else is under way (``service.py``).
"""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from enginehouse_engine.api import errors, translate
from enginehouse_engine.api.choices import Choice, Delta
from enginehouse_engine.api.echo import Echo
from enginehouse_engine.api.formats import ChatFormat, CompletionFormat, Format
from enginehouse_engine.api.generation import ClientGone, Generation
from enginehouse_engine.api.schema import ChatRequest, CompletionRequest, chat_request, completion_request
from enginehouse_engine.api.service import LONG_BODY_BYTES, VERY_LONG_BODY_BYTES, ModelText, Service
from enginehouse_engine.api.stream import EventStream
from enginehouse_engine.protocol import TOKEN_BYTES, Sampling, Submit, pack_tokens
from enginehouse_engine.text.chat_template import ChatTemplateError
from enginehouse_engine.text.tokenizer import Tokenizer

MOST_BODY_BYTES: Final = 4 << 20
"""Reading the worst of so many bytes (millions of one-digit token ids) holds up other requests for 40 ms; a thread would not help,
as the decoder does not let go of the interpreter. A prompt of 131,072 tokens has about a sixth of them."""
BODY_SECONDS: Final = 120.0

_BEGINNING_CHARACTERS: Final = 16
"""For each token of the context: enough to see that an ordinary text, of four or five, is far too long."""

_Request = TypeVar("_Request", CompletionRequest, ChatRequest)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Plan:
    """What one request asks of the cores: a prompt and a sampling for each answer, and how the answers are shown."""

    prompts: Sequence[bytes]
    """Packed token ids."""
    samplings: Sequence[Sequence[Sampling]]
    """For each prompt, one for each of its answers."""
    stops: Sequence[str]
    continues: bool
    form: Format


class _Endpoint(ABC, Generic[_Request]):
    """An ASGI application for one route. Raises ApiError until the response has begun."""

    decoder: msgspec.json.Decoder[_Request]
    prompt_param: str

    def __init__(self, service: Service) -> None:
        self._service = service

    @abstractmethod
    async def plan(self, request: _Request, text: ModelText, *, limit: int, body_bytes: int) -> Plan:
        """Raises ApiError for everything that this engine does not do."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival = time.monotonic()
        http = Request(scope, receive)
        authorize(http, self._service.api_key)
        body = await read_body(http)
        with self._service.enter() as (text, limit):
            request = translate.decode(body, self.decoder)
            if request.model != self._service.model_name:
                raise errors.model_not_found(request.model, served=self._service.model_name)
            plan = await self.plan(request, text, limit=limit, body_bytes=len(body))
            try:
                with self._generate(plan, text, arrival) as generation:
                    generation.watch(receive)
                    response = await (self._streamed if request.stream else self._whole)(generation, plan.form)
                    await response(scope, receive, send)
            except ClientGone:
                return

    def _generate(self, plan: Plan, text: ModelText, arrival: float) -> Generation:
        submits = [
            Submit(f"{plan.form.id}-{place}-{answer}", prompt, sampling)
            for place, (prompt, samplings) in enumerate(zip(plan.prompts, plan.samplings, strict=True))
            for answer, sampling in enumerate(samplings)
        ]
        return Generation(
            self._service.front_end,
            self._service.metrics,
            submits=submits,
            choices=[
                Choice(text.tokenizer, plan.stops, continues=plan.continues, min_tokens=submit.sampling.min_tokens)
                for submit in submits
            ],
            answers_per_prompt=len(plan.samplings[0]),
            prompt_tokens=sum(map(len, plan.prompts)) // TOKEN_BYTES,
            prompt_param=self.prompt_param,
            arrival_seconds=arrival,
        )

    async def _streamed(self, generation: Generation, form: Format) -> Response:
        return EventStream(generation, form, await generation.next(), computed=self._computed)

    async def _whole(self, generation: Generation, form: Format) -> Response:
        parts: dict[int, list[Delta]] = {}
        while not generation.ended:
            for index, delta in await generation.next():
                parts.setdefault(index, []).append(delta)
        answers = [
            Delta(
                "".join(delta.text for delta in deltas),
                tuple(token for delta in deltas for token in delta.scored),
                deltas[-1].finish_reason,
                deltas[0].prompt_logprobs,
            )
            for _, deltas in sorted(parts.items())
        ]
        body = await self._computed(
            sum(answer.prompt_bytes for answer in answers), lambda: msgspec.json.encode(form.whole(answers, generation.usage()))
        )
        return Response(body, media_type="application/json")

    async def _computed(self, size_bytes: int, compute: Callable[[], _Result]) -> _Result:
        """``compute()``, in a thread when what it works on is long enough to hold up others."""
        if size_bytes < LONG_BODY_BYTES:
            return compute()
        threads = self._service.threads if size_bytes < VERY_LONG_BODY_BYTES else self._service.slow_thread
        return await asyncio.get_running_loop().run_in_executor(threads, compute)


class Completions(_Endpoint[CompletionRequest]):
    """``POST /v1/completions``."""

    decoder = completion_request
    prompt_param = "prompt"

    async def plan(self, request: CompletionRequest, text: ModelText, *, limit: int, body_bytes: int) -> Plan:
        tokenizer = text.tokenizer
        translate.check_completion(request)
        answers = request.n or 1

        def prepare() -> tuple[list[bytes], list[int], list[Echo]]:
            """The prompts as token ids, how long the answers to each may be, and what is echoed before each answer."""
            asked = translate.completion_prompts(request)
            translate.check_sequences(len(asked), answers)
            prompts, most = [], []
            for part in asked:
                prompt = _encode(part, tokenizer, limit=limit, param="prompt") if isinstance(part, str) else part
                most.append(
                    translate.answer_tokens(
                        request.max_tokens,
                        prompt_tokens=len(prompt),
                        limit=limit,
                        default=translate.DEFAULT_COMPLETION_TOKENS,
                        param="prompt",
                    )
                )
                translate.check_prompt(prompt, vocab_size=tokenizer.vocab_size, param="prompt")
                prompts.append(pack_tokens(prompt))
            tokens = sum(map(len, prompts)) // TOKEN_BYTES
            translate.check_prompt_tokens(tokens, answers=answers)
            if not request.echo:
                return prompts, most, []
            if request.logprobs is not None:
                translate.check_echo(tokens, answers=answers, logprobs=request.logprobs)
            texts = [part if isinstance(part, str) else tokenizer.decode(part) for part in asked]
            return prompts, most, [Echo(*pair) for pair in zip(texts, prompts, strict=True) for _ in range(answers)]

        prompts, most, echoes = await self._computed(body_bytes, prepare)
        samplings = [
            [
                translate.sampling(
                    request,
                    max_tokens=tokens,
                    logprobs=request.logprobs,
                    prompt_logprobs=request.logprobs if request.echo else None,
                    answer=answer,
                    vocab_size=tokenizer.vocab_size,
                )
                for answer in range(answers)
            ]
            for tokens in most
        ]
        form = CompletionFormat(
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=request.model,
            tokenizer=tokenizer,
            logprobs=request.logprobs is not None,
            usage_chunk=_wants_usage(request),
            echoes=echoes,
        )
        return Plan(prompts, samplings, translate.stop_strings(request), continues=True, form=form)


class ChatCompletions(_Endpoint[ChatRequest]):
    """``POST /v1/chat/completions``."""

    decoder = chat_request
    prompt_param = "messages"

    async def plan(self, request: ChatRequest, text: ModelText, *, limit: int, body_bytes: int) -> Plan:
        tokenizer, template = text.tokenizer, text.template
        if template is None:
            raise errors.invalid(f"{text.why_no_chat}; use /v1/completions", param="messages")
        asked = translate.chat_max_tokens(request)
        logprobs = translate.chat_logprobs(request)

        def prepare() -> tuple[bytes, int]:
            """The conversation as token ids, and how long the answers may be."""
            # The template writes the special tokens that a conversation begins with.
            rendered = template.render(translate.chat_messages(request))
            prompt = _encode(rendered, tokenizer, limit=limit, param="messages", add_special_tokens=False)
            most = translate.answer_tokens(asked, prompt_tokens=len(prompt), limit=limit, default=None, param="messages")
            translate.check_prompt(prompt, vocab_size=tokenizer.vocab_size, param="messages")
            translate.check_prompt_tokens(len(prompt), answers=request.n or 1)
            return pack_tokens(prompt), most

        try:
            prompt, most = await self._computed(body_bytes, prepare)
        except ChatTemplateError as error:
            raise errors.invalid(str(error), param="messages") from error
        samplings = [
            translate.sampling(request, max_tokens=most, logprobs=logprobs, answer=answer, vocab_size=tokenizer.vocab_size)
            for answer in range(request.n or 1)
        ]
        form = ChatFormat(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=request.model,
            tokenizer=tokenizer,
            logprobs=logprobs is not None,
            usage_chunk=_wants_usage(request),
        )
        return Plan([prompt], [samplings], translate.stop_strings(request), continues=False, form=form)


def _encode(text: str, tokenizer: Tokenizer, *, limit: int, param: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text that can be within ``limit``. Raises ApiError, of a text that is much too long without reading it all."""
    translate.check_characters(text, longest_token=tokenizer.longest_token, limit=limit, param=param)
    beginning = text[: limit * _BEGINNING_CHARACTERS]
    if len(beginning) < len(text):
        # What follows can change how its last few tokens are cut, and never halve their number.
        least = len(tokenizer.encode(beginning, add_special_tokens=False)) // 2
        if least > limit:
            raise errors.text_too_long(limit=limit, characters=len(text), least_tokens=least, param=param)
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


async def read_body(request: Request, *, timeout_seconds: float = BODY_SECONDS) -> bytes:
    """The request's body. Raises ApiError when it is too large or too slow, ClientDisconnect when the client leaves."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MOST_BODY_BYTES:
        raise errors.too_large(MOST_BODY_BYTES)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BODY_BYTES:
                    raise errors.too_large(MOST_BODY_BYTES)
    except TimeoutError as error:
        raise errors.too_slow(timeout_seconds) from error
    return bytes(body)


def authorize(request: Request, api_key: bytes | None) -> None:
    """Raises ApiError unless the request brings the key; compared in constant time."""
    if api_key is None:
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    # Starlette has made Latin-1 of the header's bytes, whatever they were.
    if scheme.lower() != "bearer" or not hmac.compare_digest(key.encode("latin-1").strip(), api_key):
        raise errors.unauthorized()


def _wants_usage(request: CompletionRequest | ChatRequest) -> bool:
    return request.stream_options is not None and bool(request.stream_options.include_usage)
