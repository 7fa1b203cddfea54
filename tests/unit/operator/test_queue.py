"""The work queue: one pass per key at a time, none lost, failures apart from each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from enginehouse_operator.queue import Again, Key, KeyedQueue

A, B = ("n", "a"), ("n", "b")
SETTLED = Again(after_seconds=None)
DEADLINE = 10.0


@asynccontextmanager
async def running(one_pass: Callable[[Key], Awaitable[Again]], workers: int = 4) -> AsyncIterator[KeyedQueue]:
    queue = KeyedQueue(one_pass, workers=workers)
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_key_added_many_times_before_its_pass_gets_one() -> None:
    passes: list[Key] = []
    seen_b = asyncio.Event()

    async def one_pass(key: Key) -> Again:
        passes.append(key)
        if key == B:
            seen_b.set()
        return SETTLED

    async with running(one_pass, workers=1) as queue:
        for _ in range(10):
            queue.add(A)
        queue.add(B)
        await asyncio.wait_for(seen_b.wait(), DEADLINE)
    assert passes == [A, B]


async def test_a_key_added_during_its_pass_gets_another_and_never_two_at_once() -> None:
    inside = 0
    most = 0
    count = 0
    entered, leave, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def one_pass(_: Key) -> Again:
        nonlocal inside, most, count
        inside, count = inside + 1, count + 1
        most = max(most, inside)
        entered.set()
        if count == 1:
            await leave.wait()
        inside -= 1
        if count == 2:
            done.set()
        return SETTLED

    async with running(one_pass) as queue:
        queue.add(A)
        await asyncio.wait_for(entered.wait(), DEADLINE)
        for _ in range(5):
            queue.add(A)
        leave.set()
        await asyncio.wait_for(done.wait(), DEADLINE)
        assert queue.depth == 0
    assert (most, count) == (1, 2)


async def test_a_slow_key_delays_no_other() -> None:
    leave, seen = asyncio.Event(), asyncio.Event()

    async def one_pass(key: Key) -> Again:
        if key == A:
            await leave.wait()
        else:
            seen.set()
        return SETTLED

    async with running(one_pass, workers=2) as queue:
        queue.add(A)
        queue.add(B)
        await asyncio.wait_for(seen.wait(), DEADLINE)
        leave.set()


async def test_a_key_comes_again_when_it_asked_to() -> None:
    count = 0
    done = asyncio.Event()

    async def one_pass(_: Key) -> Again:
        nonlocal count
        count += 1
        if count == 3:
            done.set()
            return SETTLED
        return Again(after_seconds=0.0)

    async with running(one_pass) as queue:
        queue.add(A)
        await asyncio.wait_for(done.wait(), DEADLINE)


async def test_failures_come_again_later_each_time_and_a_success_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    answers = [Again(after_seconds=0.0, failed=True)] * 4 + [Again(after_seconds=600.0)] + [Again(after_seconds=0.0, failed=True)]
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = loop.call_later

    def at_once(delay: float, callback: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        if getattr(callback, "__name__", "") != "_due":
            return real(delay, callback, *arguments)
        delays.append(delay)
        if len(delays) == 6:
            done.set()
            return real(3600, callback, *arguments)
        return real(0, callback, *arguments)

    monkeypatch.setattr(loop, "call_later", at_once)

    async def one_pass(_: Key) -> Again:
        return answers[len(delays)]

    async with running(one_pass) as queue:
        queue.add(A)
        await asyncio.wait_for(done.wait(), DEADLINE)
    assert delays == [0.5, 1.0, 2.0, 4.0, 600.0, 0.5]


async def test_what_happens_during_a_failing_pass_does_not_wait_for_its_long_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = loop.call_later

    def at_once(delay: float, callback: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        if getattr(callback, "__name__", "") != "_due":
            return real(delay, callback, *arguments)
        delays.append(delay)
        if len(delays) == 5:
            done.set()
        return real(0 if len(delays) < 5 else 3600, callback, *arguments)

    monkeypatch.setattr(loop, "call_later", at_once)

    async def one_pass(key: Key) -> Again:
        if len(delays) == 4:
            queue.add(key)
        return Again(after_seconds=0.0, failed=True)

    async with running(one_pass) as queue:
        queue.add(A)
        await asyncio.wait_for(done.wait(), DEADLINE)
    assert delays == [0.5, 1.0, 2.0, 4.0, 0.5]


async def test_news_goes_before_first_visits_also_of_one_that_waits_for_its_first() -> None:
    passes: list[Key] = []
    entered, leave, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    first, last = ("n", "first"), ("n", "last")

    async def one_pass(key: Key) -> Again:
        passes.append(key)
        entered.set()
        await leave.wait()
        if key == last:
            done.set()
        return SETTLED

    async with running(one_pass, workers=1) as queue:
        queue.add(first)
        await asyncio.wait_for(entered.wait(), DEADLINE)
        for key in (B, A, last):
            queue.add(key, can_wait=True)
        queue.add(A)
        assert queue.depth == 3
        leave.set()
        await asyncio.wait_for(done.wait(), DEADLINE)
        assert queue.depth == 0
    assert passes == [first, A, B, last]
