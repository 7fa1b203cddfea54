"""The end of a link between launchers: what is said of it, and whether the other side's kernel was still there."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.framed_link import FramedLink


class Broken(socket.socket):
    """As a kernel that got no answer: it says so once, to whoever asks first, and after that only that nothing comes."""

    error = 0

    def recv(self, *arguments: int) -> bytes:
        self._say()
        return super().recv(*arguments)

    def send(self, *arguments: object) -> int:
        self._say()
        return super().send(*arguments)  # type: ignore[call-overload, no-any-return]

    def _say(self) -> None:
        error, self.error = self.error, 0
        if error:
            self.shutdown(socket.SHUT_RDWR)
            raise OSError(error, os.strerror(error))


@pytest.fixture
def ends() -> Iterator[tuple[Broken, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    with other:
        yield Broken(fileno=accepted.detach()), other


@pytest.mark.parametrize("says_something", [False, True])
@pytest.mark.parametrize(
    ("error", "silent"), [(errno.ETIMEDOUT, True), (errno.EHOSTUNREACH, True), (errno.ECONNRESET, False), (0, False)]
)
def test_a_link_that_breaks_says_why_and_whether_the_other_side_was_silent(
    ends: tuple[Broken, socket.socket], error: int, silent: bool, says_something: bool
) -> None:
    own, other = ends
    loop, reasons = EventLoop(), list[str]()
    link = FramedLink(own, loop, heard=lambda message: None, lost=reasons.append)
    own.error = error
    if says_something:
        link.send({"a": "word"})
    other.shutdown(socket.SHUT_WR)
    for call in loop.wait(10.0):
        call()
    assert reasons == [f"[Errno {error}] {os.strerror(error)}" if error else "it closed the connection"]
    assert link.was_silent is silent
    assert not link.is_open


def test_one_that_talks_without_end_leaves_the_others_their_turn(ends: tuple[Broken, socket.socket]) -> None:
    own, other = ends
    loop, heard = EventLoop(), list[bytes]()

    def answer(message: bytes) -> None:
        heard.append(message)
        assert len(heard) < 10_000, "the turn never ends"
        other.sendall(b"\0\0\0\2{}")

    FramedLink(own, loop, heard=answer, lost=lambda reason: None)
    other.sendall(b"\0\0\0\2{}")
    for turn in (1, 2):
        before = len(heard)
        for call in loop.wait(10.0):
            call()
        assert len(heard) > before, f"nothing is heard in turn {turn}"
