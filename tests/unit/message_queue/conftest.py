"""A writer of this process, and readers of this process that attach to it."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from enginehouse_engine.message_queue import Reader, Writer
from queue_processes import PATIENCE_SECONDS, open_reader

Attach = Callable[..., Reader]
MakeWriter = Callable[..., Writer]


@pytest.fixture
def make_writer() -> Iterator[MakeWriter]:
    made: list[Writer] = []

    def make(*readers: str, ring_bytes: int = 64 * 1024) -> Writer:
        writer = Writer(queue="steps", writer="core", generation=1, readers=readers, ring_bytes=ring_bytes, remote_host="127.0.0.1")
        made.append(writer)
        return writer

    yield make
    for writer in made:
        writer.close()


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """A second thread for whoever would wait for the first."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def attach(thread: ThreadPoolExecutor) -> Iterator[Attach]:
    """Open a reader in a thread, since the writer has to answer in this one."""
    opened: list[Reader] = []

    def open_and_answer(writer: Writer, *, reader: str = "w", generation: int = 1, remote: bool = False) -> Reader:
        future = thread.submit(open_reader, writer.address, reader=reader, generation=generation, remote=remote)
        until = time.monotonic() + PATIENCE_SECONDS
        while not future.done() and time.monotonic() < until:
            select.select([writer.fileno()], [], [], 0.01)
            writer.attend()
        result = future.result(PATIENCE_SECONDS)
        opened.append(result)
        return result

    yield open_and_answer
    for reader in opened:
        reader.close()
