"""The work queue: keys in, one pass per key at a time.

Invariants: a key that was added while its pass runs gets another pass afterwards; adding it ten times is one pass; news goes before
first visits, so that a death does not wait behind a thousand new engines; a pass that fails is tried again after 0.5, 1, 2 ... at
most 60 s, sooner when its key is added, and delays no other key. Nothing here is needed to be correct after a restart: all keys
come again from the first list of the watches.
Does not know what a pass does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

Key = tuple[str, str]
"""Namespace and name of an engine."""

FIRST_BACKOFF_SECONDS: Final = 0.5
LONGEST_BACKOFF_SECONDS: Final = 60.0

log = logging.getLogger("enginehouse.operator")


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """When a key wants its next pass, if nothing adds it before; None = only then. ``failed``: later each time."""

    after_seconds: float | None
    failed: bool = False


class KeyedQueue:
    """``run`` works until it is cancelled. All calls from one event loop."""

    def __init__(self, one_pass: Callable[[Key], Awaitable[Again]], *, workers: int) -> None:
        self._pass = one_pass
        self._workers = workers
        self._ready: asyncio.PriorityQueue[tuple[bool, int, Key]] = asyncio.PriorityQueue()
        """False before true, then in the order in which they came."""
        self._waiting: dict[Key, tuple[bool, int]] = {}
        """In ``_ready``, not yet taken. One that waits elsewhere in there too is passed over."""
        self._number = itertools.count()
        self._running: dict[Key, float] = {}
        """With the loop time at which the pass began."""
        self._again: set[Key] = set()
        """Added while running."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def add(self, key: Key, *, can_wait: bool = False) -> None:
        """Ask for a pass, soon. ``can_wait``: after all that cannot."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting or (self._waiting[key][0] and not can_wait):
            self._waiting[key] = (can_wait, next(self._number))
            self._ready.put_nowait((*self._waiting[key], key))

    @property
    def longest_running_seconds(self) -> float:
        """Age of the oldest pass under way."""
        now = asyncio.get_running_loop().time()
        return max((now - began for began in self._running.values()), default=0.0)

    @property
    def depth(self) -> int:
        return len(self._waiting)

    async def run(self) -> None:
        """Work. Ends only by cancellation."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"worker {number}")

    async def _work(self) -> None:
        while True:
            *place, key = await self._ready.get()
            if self._waiting.get(key) != tuple(place):
                continue
            del self._waiting[key]
            self._running[key] = asyncio.get_running_loop().time()
            try:
                again = await self._pass(key)
            finally:
                self._running.pop(key, None)
            self._schedule(key, again)

    def _schedule(self, key: Key, again: Again) -> None:
        delay = again.after_seconds
        if again.failed:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = max(delay or 0.0, min(FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_BACKOFF_SECONDS))
        else:
            self._failures.pop(key, None)
        if (
            key in self._again
        ):  # something happened meanwhile: it may be a death, and waits for nothing; a failing pass for a little
            delay = FIRST_BACKOFF_SECONDS if again.failed else 0.0
        self._again.discard(key)
        if delay == 0.0:
            self.add(key)
        elif delay is not None:
            self._timers[key] = asyncio.get_running_loop().call_later(delay, self._due, key)

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
