"""Where the outputs of one HTTP request's sequences arrive, and where its handler waits for them.

Invariant: the handler is woken at most once for everything that arrived since it looked, so a token costs an append and not a
task; after a failure nothing but the failure comes out. Does not know sockets or HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from enginehouse_engine.protocol import RequestOutput


class Answer:
    """Outputs by the index of their sequence."""

    def __init__(self, request_ids: Sequence[str]) -> None:
        self.request_ids = tuple(request_ids)
        self._arrived: list[tuple[int, RequestOutput]] = []
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, index: int, output: RequestOutput) -> None:
        """An output of sequence ``index``."""
        self._arrived.append((index, output))
        self._wake()

    def fail(self, failure: Exception) -> None:
        """The handler's next wait raises ``failure``; the first one counts."""
        self._failure = self._failure or failure
        self._wake()

    async def next(self) -> list[tuple[int, RequestOutput]]:
        """What has arrived since the last call, at least one output."""
        while not self._arrived and self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure
        arrived, self._arrived = self._arrived, []
        return arrived

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
