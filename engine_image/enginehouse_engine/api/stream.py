"""Server-sent events: the stream of one response.

Invariant: a complete stream ends with ``[DONE]``; one that failed ends with an event that holds the error, and without it.
Source: openai-openapi, and "Server-sent events" in the HTML standard.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from enginehouse_engine.api.choices import Delta
from enginehouse_engine.api.errors import ApiError
from enginehouse_engine.api.formats import Format
from enginehouse_engine.api.generation import Generation

DONE: Final = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


def event(body: bytes) -> bytes:
    """One event. JSON holds no line breaks, so the body is one line."""
    return b"data: " + body + b"\n\n"


class EventStream(Response):
    """Sends deltas as they come; lets ClientGone through.

    ``first`` was waited for before this was made: a failure until then was a plain HTTP error. ``computed`` computes what is
    given with its size, where it holds up nobody.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        form: Format,
        first: Sequence[tuple[int, Delta]],
        *,
        computed: Callable[[int, Callable[[], bytes]], Awaitable[bytes]],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._form = form
        self._first = first
        self._computed = computed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        generation = self._generation
        try:
            await self._send(send, self._first)
            while not generation.ended:
                await self._send(send, await generation.next())
            end = DONE
            if self._form.usage_chunk:
                end = event(_encoder.encode(self._form.last_chunk(generation.usage()))) + end
        except ApiError as error:
            end = event(error.body())
        await send({"type": "http.response.body", "body": end})

    async def _send(self, send: Send, deltas: Sequence[tuple[int, Delta]]) -> None:
        size = sum(delta.prompt_bytes for _, delta in deltas)
        body = await self._computed(size, lambda: self._events(deltas)) if size else self._events(deltas)
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    def _events(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        chunks = [chunk for index, delta in deltas for chunk in self._form.chunks(index, delta)]
        return b"".join(event(_encoder.encode(chunk)) for chunk in chunks)
