"""Processes that tests of the message queue start, kill and stop: a reader that logs what it gets, a writer that never ends.

A process comes from a fork server that has imported the queue already, so that a test can afford many.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import msgspec

from enginehouse_engine.message_queue import QueueAddress, Reader, Writer, open_local_reader, open_remote_reader
from enginehouse_engine.message_queue.errors import QueueError

PATIENCE_SECONDS = 60.0
"""No test waits longer for anything; nothing takes a hundredth of it."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["queue_processes"])


def digest(frames: Sequence[bytes | bytearray | memoryview]) -> str:
    """Of the frames and their boundaries."""
    sha = hashlib.sha256()
    for frame in frames:
        sha.update(len(frame).to_bytes(8, "big"))
        sha.update(frame)
    return sha.hexdigest()


def open_reader(address: QueueAddress, *, reader: str, generation: int, remote: bool) -> Reader:
    opened = open_remote_reader if remote else open_local_reader
    return opened(address, reader=reader, generation=generation, deadline_seconds=PATIENCE_SECONDS)


@dataclass
class ReaderProcess:
    """A process that reads until the queue ends, and its log."""

    name: str
    generation: int
    remote: bool
    process: ForkServerProcess
    log: Path
    stopped: bool = False
    dead: bool = False
    lines: list[list[object]] = field(default_factory=list)

    def finish(self) -> None:
        """Wait for its end and read its log: first sequence number, then number, correlation and digest of each, then its end."""
        self.process.join(PATIENCE_SECONDS)
        assert not self.process.is_alive(), f"{self.name} {self.generation} still waits"
        text = self.log.read_text() if self.log.exists() else ""
        # A killed process may have left half a line.
        self.lines = [json.loads(line) for line in text.split("\n")[:-1]]

    def messages(self) -> list[list[object]]:
        return [line for line in self.lines if isinstance(line[0], int)]

    def first(self) -> int | None:
        return next((int(str(line[1])) for line in self.lines if line[0] == "first"), None)

    def end(self) -> str | None:
        return next((str(line[1]) for line in self.lines if line[0] == "end"), None)


def start_reader(address: QueueAddress, *, reader: str, generation: int, remote: bool, folder: Path) -> ReaderProcess:
    log = folder / f"{reader}-{generation}-{address.key}.log"
    process = CONTEXT.Process(target=_read, args=(msgspec.json.encode(address), reader, generation, remote, str(log)), daemon=True)
    process.start()
    return ReaderProcess(reader, generation, remote, process, log)


def _read(address: bytes, name: str, generation: int, remote: bool, log: str) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def say(*line: object) -> None:
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    try:
        reader = open_reader(msgspec.json.decode(address, type=QueueAddress), reader=name, generation=generation, remote=remote)
        say("first", reader.first_sequence)
        while True:
            message = reader.receive(deadline_seconds=PATIENCE_SECONDS)
            say(message.sequence, message.correlation, digest(message.frames))
    except QueueError as error:
        say("end", type(error).__name__, str(error))


def start_echo(requests: QueueAddress) -> tuple[ForkServerProcess, QueueAddress]:
    """A process that sends back what it gets, from a queue of its own; the address of that."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_echo, args=(theirs, msgspec.json.encode(requests)), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(PATIENCE_SECONDS), "the echo bound nothing"
    return process, msgspec.json.decode(ours.recv_bytes(), type=QueueAddress)


def _echo(pipe: multiprocessing.connection.Connection, requests: bytes) -> None:
    responses = Writer(queue="responses", writer="echo", generation=1, readers=["client"])
    pipe.send_bytes(msgspec.json.encode(responses.address))
    reader = open_reader(msgspec.json.decode(requests, type=QueueAddress), reader="echo", generation=1, remote=False)
    responses.wait_until_ready(deadline_seconds=PATIENCE_SECONDS)
    try:
        while True:
            message = reader.receive(deadline_seconds=PATIENCE_SECONDS)
            responses.send(message.frames, correlation=message.correlation, deadline_seconds=PATIENCE_SECONDS)
    except QueueError:
        responses.close()


def start_writer(readers: Sequence[str], *, remote_host: str) -> tuple[ForkServerProcess, QueueAddress]:
    """A process that sends without end as soon as its readers are there."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_write, args=(theirs, list(readers), remote_host), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(PATIENCE_SECONDS), "the writer bound nothing"
    return process, msgspec.json.decode(ours.recv_bytes(), type=QueueAddress)


def _write(pipe: multiprocessing.connection.Connection, readers: list[str], remote_host: str) -> None:
    writer = Writer(queue="endless", writer="victim", generation=1, readers=readers, ring_bytes=64 * 1024, remote_host=remote_host)
    pipe.send_bytes(msgspec.json.encode(writer.address))
    writer.wait_until_ready(deadline_seconds=PATIENCE_SECONDS)
    for number in itertools.count(1):
        writer.send([endless_message(number)], correlation=number, deadline_seconds=PATIENCE_SECONDS)


def endless_message(number: int) -> bytes:
    """The ``number``-th message of :func:`start_writer`; every seventh is larger than the ring."""
    return number.to_bytes(8, "big") * (20_000 if number % 7 == 0 else number % 100)


def sleeps_while_idle(reader: Reader, *, seconds: float) -> int:
    """How often this thread gave up its processor by itself while it waited for a message that did not come."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    try:
        reader.receive(deadline_seconds=seconds)
    except QueueError:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
    raise AssertionError("a message came")
