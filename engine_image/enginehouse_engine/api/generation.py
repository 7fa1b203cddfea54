"""The answers of one request, from the cores' outputs to deltas of text, with their figures.

Invariant: whatever ends the request, no sequence of it stays behind in a core. Does not know the API's formats.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from types import TracebackType
from typing import Any

from enginehouse_engine.api import errors
from enginehouse_engine.api.choices import Choice, Delta
from enginehouse_engine.api.front_end import FrontEnd
from enginehouse_engine.api.metrics import Metrics
from enginehouse_engine.api.schema import CachedTokens, Usage
from enginehouse_engine.protocol import TOKEN_BYTES, RequestOutput, Submit


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""


class Generation:
    """Use it as a context: leaving it aborts what has not ended."""

    def __init__(
        self,
        front_end: FrontEnd,
        metrics: Metrics,
        *,
        submits: Sequence[Submit],
        choices: Sequence[Choice],
        answers_per_prompt: int,
        prompt_tokens: int,
        prompt_param: str,
        arrival_seconds: float,
    ) -> None:
        """One choice for each submit, prompt by prompt. Raises ApiError when nobody serves.

        ``prompt_tokens`` counts each prompt once; ``prompt_param`` is what the API calls the prompt.
        """
        self._front_end = front_end
        self._metrics = metrics
        self._submits = submits
        self._choices = choices
        self._prompt_param = prompt_param
        self._prompt_tokens = prompt_tokens
        self._answers_per_prompt = answers_per_prompt
        self._arrival = arrival_seconds
        self._last_token: list[float | None] = [None] * len(choices)
        self._answer = front_end.submit(submits)
        self._watcher: asyncio.Task[None] | None = None
        self._client_gone = False
        metrics.prompt_tokens.inc(prompt_tokens)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        unfinished = [index for index, choice in enumerate(self._choices) if not choice.finished]
        self._front_end.abort(self._answer.request_ids[index] for index in unfinished)
        if unfinished:
            self._metrics.answers["abort" if self._client_gone else "error"].inc(len(unfinished))
        self._metrics.whole.observe(time.monotonic() - self._arrival)

    def watch(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        """End with ClientGone when the client closes the connection."""

        async def wait() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._client_gone = True
            self._answer.fail(ClientGone())

        self._watcher = asyncio.create_task(wait())

    @property
    def ended(self) -> bool:
        """Every answer is complete."""
        return all(choice.finished for choice in self._choices)

    async def next(self) -> list[tuple[int, Delta]]:
        """What was added since the last call, by the index of the answer. Raises ApiError and ClientGone."""
        arrived = await self._answer.next()
        now = time.monotonic()
        return [(index, self._feed(index, output, now)) for index, output in arrived if not self._choices[index].finished]

    def usage(self) -> Usage:
        """So far. A prompt's tokens count once, and so do those of them that its first answer found in the cache."""
        completion = sum(choice.completion_tokens for choice in self._choices)
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=completion,
            total_tokens=self._prompt_tokens + completion,
            prompt_tokens_details=CachedTokens(sum(choice.cached_tokens for choice in self._choices[:: self._answers_per_prompt])),
        )

    def _feed(self, index: int, output: RequestOutput, now: float) -> Delta:
        if output.finish_reason == "refused":
            raise self._refused(index, output)
        if output.finish_reason == "error":
            raise errors.internal(f"the engine core could not go on with this request: {output.error}")
        self._measure(index, len(output.tokens), now)
        choice = self._choices[index]
        delta = choice.feed(output)
        if delta.finish_reason is not None:
            self._metrics.answers[delta.finish_reason].inc()
            if output.finish_reason is None:
                self._front_end.abort((self._answer.request_ids[index],))
        return delta

    def _refused(self, index: int, output: RequestOutput) -> errors.ApiError:
        """What the API would have said, had it known the core's limit: a rank that came meanwhile may have a smaller one."""
        if output.context_limit is None:
            return errors.invalid(output.error)
        submit = self._submits[index]
        return errors.context_length_exceeded(
            limit=output.context_limit,
            prompt_tokens=len(submit.prompt) // TOKEN_BYTES,
            max_tokens=submit.sampling.max_tokens,
            param=self._prompt_param,
        )

    def _measure(self, index: int, tokens: int, now: float) -> None:
        if not tokens:
            return
        self._metrics.generation_tokens.inc(tokens)
        last = self._last_token[index]
        if last is None:
            self._metrics.first_token.observe(now - self._arrival)
        else:
            for _ in range(tokens):
                self._metrics.between_tokens.observe((now - last) / tokens)
        self._last_token[index] = now
