"""The launcher's event loop and descriptors whose numbers are used again."""

from __future__ import annotations

import os

from enginehouse_engine.launcher.event_loop import EventLoop


def test_a_callback_runs_for_its_own_registration_and_not_for_one_that_got_its_number() -> None:
    loop, called = EventLoop(), list[str]()
    (first, first_end), (second, second_end) = os.pipe(), os.pipe()

    def reuse() -> None:
        called.append("first")
        loop.forget(second)
        os.dup2(first, second)  # The number lives on, with another meaning.
        loop.watch(second, lambda: called.append("new owner"))

    loop.watch(first, reuse)
    loop.watch(second, lambda: called.append("old owner"))
    for end in (first_end, second_end):
        os.write(end, b"x")
    ready = loop.wait(0)
    assert len(ready) == 2
    for callback in ready:
        callback()
    assert called == ["first"], "what was ready belonged to the old owner, which is gone"
    for descriptor in (first, first_end, second, second_end):
        os.close(descriptor)
