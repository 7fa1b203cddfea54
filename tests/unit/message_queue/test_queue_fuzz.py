"""Readers that are killed, stopped, late and replaced, on both transports: in order, none lost or doubled, every wait bounded."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginehouse_engine.message_queue import Writer
from enginehouse_engine.message_queue.errors import ReadersBehind
from queue_processes import PATIENCE_SECONDS, ReaderProcess, digest, endless_message, start_reader, start_writer

READERS = {"near 0": False, "near 1": False, "far 0": True}
RING_BYTES = 64 * 1024
SEND_SECONDS = 0.2

FRAME_SIZES = st.sampled_from([0, 1, 63, 64, 65, 1000, 16_000, 16_320, 16_321, 40_000, 65_536, 200_000])
MESSAGES = st.lists(FRAME_SIZES, max_size=4)
ACTIONS = st.one_of(
    st.tuples(st.just("send"), st.lists(MESSAGES, min_size=1, max_size=8)),
    st.tuples(st.sampled_from(["start", "kill", "stop", "continue", "dismiss"]), st.sampled_from(sorted(READERS))),
)


@dataclass
class Story:
    """A writer, and every process that was ever its reader."""

    writer: Writer
    folder: Path
    sent: list[tuple[int, str]] = field(default_factory=list)
    """(correlation, digest) of each message, by sequence number - 1."""
    present: dict[str, ReaderProcess] = field(default_factory=dict)
    processes: list[ReaderProcess] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def start(self, name: str) -> None:
        """A new generation; the one before may be alive, stopped or dead."""
        generation = sum(process.name == name for process in self.processes) + 1
        process = start_reader(self.writer.address, reader=name, generation=generation, remote=READERS[name], folder=self.folder)
        self.processes.append(process)
        self.present[name] = process
        attend_until(self.writer, lambda: process.log.exists() and process.log.stat().st_size > 0)

    def signal(self, name: str, number: int) -> None:
        process = self.present.get(name)
        if process is not None and not process.dead and process.process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # one that was dismissed ends by itself
                os.kill(process.process.pid or 0, number)
            process.stopped = number == signal.SIGSTOP or (process.stopped and number != signal.SIGCONT)
            process.dead = number == signal.SIGKILL

    def send(self, sizes: list[int]) -> None:
        frames = [self.random.randbytes(size) for size in sizes]
        correlation = self.random.getrandbits(64)
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            try:
                sequence = self.writer.send(frames, correlation=correlation, deadline_seconds=SEND_SECONDS)
            except ReadersBehind as error:
                if not error.names:
                    raise
                for name in error.names:
                    process = self.present[name]
                    if process.stopped or process.dead:
                        self.writer.dismiss(name, "it does not read")
                continue
            self.sent.append((correlation, digest(frames)))
            assert sequence == len(self.sent)
            return
        raise AssertionError("readers that live and were not stopped never made room")

    def check(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.process.pid or 0, signal.SIGCONT)
        complete = set(self.writer.attached())
        self.writer.close()
        for process in self.processes:
            process.finish()
            first, messages = process.first(), process.messages()
            if first is None:
                assert not messages
                continue
            expected = [[number, *self.sent[number - 1]] for number in range(first, len(self.sent) + 1)]
            assert messages == expected[: len(messages)], f"{process.name} {process.generation}"
            if process.dead:
                continue
            is_newest = self.present[process.name] is process
            if is_newest and process.name in complete:
                assert (messages, process.end()) == (expected, "QueueClosed")
            else:
                # One that was stopped for longer than a node may be lost finds its connection cut instead of the reason.
                assert process.end() in {"ReaderDismissed", "WriterGone"}, process.lines[-1]


def attend_until(writer: Writer, done: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < until, f"missing: {writer.missing()}, lost: {writer.lost}"
        select.select([writer.fileno()], [], [], 0.01)
        writer.attend()


def play(actions: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(
            queue="fuzz", writer="test", generation=1, readers=list(READERS), ring_bytes=RING_BYTES, remote_host="127.0.0.1"
        )
        story = Story(writer, Path(folder))
        try:
            for name in READERS:
                story.start(name)
            writer.wait_until_ready(deadline_seconds=PATIENCE_SECONDS)
            for action, argument in actions:
                if action == "send":
                    assert isinstance(argument, list)
                    for sizes in argument:
                        story.send(sizes)
                    continue
                name = str(argument)
                if action == "start":
                    story.start(name)
                elif action == "dismiss":
                    writer.dismiss(name, "the test wants it")
                    writer.attend()
                else:
                    story.signal(name, {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "continue": signal.SIGCONT}[action])
            story.send([100])
            story.check()
        finally:
            writer.close()
            for process in story.processes:
                process.process.kill()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ACTIONS, max_size=14))
def test_whatever_happens_to_readers_each_gets_a_run_of_the_stream_and_those_that_live_all_of_it(
    actions: list[tuple[str, object]],
) -> None:
    play(actions)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ACTIONS, max_size=40))
def test_many_long_stories_of_readers(actions: list[tuple[str, object]]) -> None:
    play(actions)


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_reader_that_is_stopped_in_the_middle_is_dismissed_and_finds_out_when_it_goes_on(name: str) -> None:
    sizes: list[list[int]] = [[30_000, 0, 7]] * 20
    play([("send", sizes), ("stop", name), ("send", sizes), ("continue", name), ("start", name), ("send", sizes)])


@pytest.mark.parametrize("remote", [False, True], ids=["this node", "another node"])
def test_a_writer_that_is_killed_leaves_its_readers_a_run_of_the_stream_and_nothing_else(remote: bool, tmp_path: Path) -> None:
    files = set(os.listdir("/dev/shm"))
    writer, address = start_writer(["a", "b"], remote_host="127.0.0.1")
    readers = [start_reader(address, reader=name, generation=1, remote=remote, folder=tmp_path) for name in ("a", "b")]
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until and not all(r.log.exists() and r.log.stat().st_size > 10_000 for r in readers):
        select.select([], [], [], 0.01)
    assert address.local in Path("/proc/net/unix").read_text()
    writer.kill()
    writer.join(PATIENCE_SECONDS)
    for reader in readers:
        reader.finish()
        messages = reader.messages()
        assert len(messages) > 50
        assert messages == [[number, number, digest([endless_message(number)])] for number in range(1, len(messages) + 1)]
        assert reader.end() == "WriterGone"
    assert set(os.listdir("/dev/shm")) <= files
    assert address.local not in Path("/proc/net/unix").read_text()
