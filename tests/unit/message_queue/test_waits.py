"""Every wait ends: by news, by its deadline with a name, a cancel from another thread, or the peer's end; it sleeps meanwhile."""

from __future__ import annotations

import mmap
import os
import random
import select
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from enginehouse_engine.message_queue import Reader, Writer, open_remote_reader
from enginehouse_engine.message_queue import ring_layout as layout
from enginehouse_engine.message_queue.errors import (
    MessageTooLarge,
    NothingReceived,
    QueueCancelled,
    QueueClosed,
    QueueCorrupt,
    ReaderDismissed,
    ReadersBehind,
    SharedMemoryTooSmall,
    WriterGone,
)
from queue_processes import PATIENCE_SECONDS, open_reader, sleeps_while_idle, start_echo


@pytest.fixture(params=[False, True], ids=["this node", "another node"])
def remote(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def fill(writer: Writer) -> int:
    """Send until somebody is behind; how many messages went out."""
    for count in range(10_000):
        try:
            writer.send([b"x" * 9_000], deadline_seconds=0.01)
        except ReadersBehind:
            return count
    raise AssertionError("the queue has no bound")


def drain(reader: Reader) -> None:
    while True:
        reader.receive(deadline_seconds=PATIENCE_SECONDS)


def test_a_deadline_without_news_ends_one_call_and_not_the_reader(make_writer, attach, remote) -> None:
    writer = make_writer("w")
    reader = attach(writer, remote=remote)
    for number in range(3):
        with pytest.raises(NothingReceived, match="'w' got nothing from queue 'steps' of core"):
            reader.receive(deadline_seconds=0.01)
        writer.send([str(number).encode()], deadline_seconds=1)
        assert reader.receive(deadline_seconds=PATIENCE_SECONDS).frames == [str(number).encode()]


def test_a_reader_of_another_node_that_knocks_while_one_is_let_in_is_not_forgotten(make_writer, monkeypatch) -> None:
    writer = make_writer("a", "b")
    opening: list[Future[Reader]] = []
    let_in = writer._remote.welcome

    def knock(reader: str) -> None:
        opening.append(pool.submit(open_remote_reader, writer.address, reader=reader, generation=1, deadline_seconds=10))

    def let_in_late(*arguments: object) -> None:
        if len(opening) == 1:
            knock("b")
            time.sleep(0.2)  # ZMQ tells of a message once: nobody could look whether it is there without taking the news.
        let_in(*arguments)

    monkeypatch.setattr(writer._remote, "welcome", let_in_late)
    with ThreadPoolExecutor(2) as pool:
        knock("a")
        writer.wait_until_ready(deadline_seconds=PATIENCE_SECONDS)
        for each in opening:
            each.result(PATIENCE_SECONDS).close()


def test_an_idle_reader_sleeps(make_writer, attach, remote) -> None:
    reader = attach(make_writer("w"), remote=remote)
    # One sleep, and room for a page fault or a lock; looking every 10 ms would make 50.
    assert sleeps_while_idle(reader, seconds=0.5) <= 5


def test_a_writer_that_waits_for_room_sleeps_until_there_is_some(make_writer, attach, thread, remote) -> None:
    writer = make_writer("w")
    reader = attach(writer, remote=remote)
    sent = fill(writer)
    sending = thread.submit(writer.send, [b"x" * 9_000], deadline_seconds=PATIENCE_SECONDS)
    assert [reader.receive(deadline_seconds=PATIENCE_SECONDS).sequence for _ in range(sent)] == list(range(1, sent + 1))
    assert sending.result(PATIENCE_SECONDS) == sent + 1
    assert reader.receive(deadline_seconds=PATIENCE_SECONDS).sequence == sent + 1


def test_who_is_behind_is_named_and_nobody_got_the_message(make_writer, attach) -> None:
    writer = make_writer("eager", "slow", "far")
    readers = {
        "eager": attach(writer, reader="eager"),
        "slow": attach(writer, reader="slow"),
        "far": attach(writer, reader="far", remote=True),
    }
    sent = fill(writer)
    for name in ("eager", "far"):
        assert [readers[name].receive(deadline_seconds=5).sequence for _ in range(sent)] == list(range(1, sent + 1))
    with pytest.raises(ReadersBehind, match=r"waited 0\.01 s for slow to read; message \d+ was not sent") as raised:
        writer.send([b"y" * 50_000], deadline_seconds=0.01)
    assert raised.value.names == ("slow",)
    for name in ("eager", "far"):
        with pytest.raises(NothingReceived):
            readers[name].receive(deadline_seconds=0.01)
    writer.dismiss("slow", "it does not read")
    assert writer.send([b"z"], deadline_seconds=1) == sent + 1
    for name in ("eager", "far"):
        assert readers[name].receive(deadline_seconds=5).frames == [b"z"]
    with pytest.raises(ReaderDismissed, match="it does not read"):
        readers["slow"].receive(deadline_seconds=5)


def test_a_dismissal_from_another_thread_ends_the_wait_for_that_reader(make_writer, attach, thread, remote) -> None:
    writer = make_writer("w")
    reader = attach(writer, remote=remote)
    sent = fill(writer)
    sending = thread.submit(writer.send, [b"x" * 9_000], deadline_seconds=PATIENCE_SECONDS)
    writer.dismiss("w", "its process was reported dead")
    assert sending.result(PATIENCE_SECONDS / 2) == sent + 1
    assert writer.lost == {"w": "its process was reported dead"}
    with pytest.raises(ReaderDismissed, match="its process was reported dead"):
        drain(reader)


def test_a_reader_that_goes_away_ends_the_wait_for_it(make_writer, attach, thread) -> None:
    writer = make_writer("w")
    reader = attach(writer)
    sent = fill(writer)
    sending = thread.submit(writer.send, [b"x" * 9_000], deadline_seconds=PATIENCE_SECONDS)
    reader.close()
    assert sending.result(PATIENCE_SECONDS / 2) == sent + 1


def test_a_cancel_ends_a_readers_wait(make_writer, attach, thread, remote) -> None:
    reader = attach(make_writer("w"), remote=remote)
    waiting = thread.submit(reader.receive, deadline_seconds=PATIENCE_SECONDS)
    reader.cancel()
    with pytest.raises(QueueCancelled):
        waiting.result(PATIENCE_SECONDS / 2)
    with pytest.raises(QueueCancelled):
        reader.receive(deadline_seconds=PATIENCE_SECONDS)


def test_a_cancel_ends_a_writers_wait(make_writer, attach, thread, remote) -> None:
    writer = make_writer("w", "missing")
    waiting = thread.submit(writer.wait_until_ready, deadline_seconds=PATIENCE_SECONDS)
    writer.cancel()
    with pytest.raises(QueueCancelled):
        waiting.result(PATIENCE_SECONDS / 2)
    writer = make_writer("w")
    attach(writer, remote=remote)
    fill(writer)
    waiting = thread.submit(writer.send, [b"x" * 9_000], deadline_seconds=PATIENCE_SECONDS)
    writer.cancel()
    with pytest.raises(QueueCancelled):
        waiting.result(PATIENCE_SECONDS / 2)


def test_what_was_sent_before_closing_is_received(make_writer, attach, remote) -> None:
    writer = make_writer("w")
    reader = attach(writer, remote=remote)
    for _ in range(3):
        writer.send([b"", b"x"], deadline_seconds=1)
    writer.close()
    assert [reader.receive(deadline_seconds=PATIENCE_SECONDS).sequence for _ in range(3)] == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(QueueClosed, match="after message 3"):
            reader.receive(deadline_seconds=PATIENCE_SECONDS)


def test_a_message_given_up_halfway_is_no_message(make_writer, attach, remote) -> None:
    writer = make_writer("near", "w")
    near, other = attach(writer, reader="near"), attach(writer, remote=remote)
    with pytest.raises(ReadersBehind):
        writer.send([b"x" * 200_000], deadline_seconds=0.05)
    # What is out of it already is read, and thrown away when the next one begins.
    for reader in (near, other):
        with pytest.raises(NothingReceived):
            reader.receive(deadline_seconds=0.05)
    assert writer.send([b"small"], deadline_seconds=1) == 1
    for reader in (near, other):
        received = reader.receive(deadline_seconds=PATIENCE_SECONDS)
        assert (received.sequence, received.frames) == (1, [b"small"])


def test_a_reader_that_comes_in_the_middle_of_a_message_begins_with_the_next(make_writer, attach, thread, remote) -> None:
    writer = make_writer("w", "late")
    reader = attach(writer)
    sending = thread.submit(writer.send, [b"x" * 200_000], deadline_seconds=PATIENCE_SECONDS)
    with ThreadPoolExecutor(1) as other_thread:
        opening = other_thread.submit(open_reader, writer.address, reader="late", generation=1, remote=remote)
        until = time.monotonic() + PATIENCE_SECONDS
        while not writer._joining and "late" not in writer.attached() and time.monotonic() < until:
            os.sched_yield()
        assert reader.receive(deadline_seconds=PATIENCE_SECONDS).sequence == sending.result(PATIENCE_SECONDS) == 1
        late = opening.result(PATIENCE_SECONDS)
    assert late.first_sequence == 2
    writer.send([b"next"], deadline_seconds=1)
    received = late.receive(deadline_seconds=PATIENCE_SECONDS)
    assert (received.sequence, received.frames) == (2, [b"next"])
    late.close()


def test_a_message_beyond_all_bounds_is_refused_before_anything_is_sent(make_writer, attach) -> None:
    writer = make_writer("w")
    reader = attach(writer)
    huge = memoryview(mmap.mmap(-1, layout.LARGEST_MESSAGE_BYTES + 1))
    with pytest.raises(MessageTooLarge, match="at most 1073741824 bytes, found 1073741825"):
        writer.send([huge], deadline_seconds=1)
    assert writer.send([b"ok"], deadline_seconds=1) == 1
    assert reader.receive(deadline_seconds=1).frames == [b"ok"]


def test_a_volume_that_is_too_small_is_an_error_when_the_queue_is_made() -> None:
    with pytest.raises(SharedMemoryTooSmall, match="queue 'steps' of core needs 1125899906908160 bytes in /dev/shm, found"):
        Writer(queue="steps", writer="core", generation=1, readers=(), ring_bytes=1 << 50)


def test_a_reader_can_spoil_only_its_own_page_and_is_dismissed_for_that(make_writer, attach) -> None:
    writer = make_writer("good", "bad")
    good, bad = attach(writer, reader="good"), attach(writer, reader="bad")
    assert bad._whole.readonly
    bad._words[layout.ACKNOWLEDGED] = 1 << 40
    for _ in range(20):
        writer.send([b"x" * 10_000], deadline_seconds=1)
        good.receive(deadline_seconds=1)
    assert writer.attached() == ["good"]
    assert "reader 'bad' acknowledges 1099511627776 of 0 to" in writer.lost["bad"]


@pytest.mark.parametrize("word", range(7))
def test_a_damaged_record_ends_the_reader_and_is_never_handed_out(make_writer, attach, word: int) -> None:
    writer = make_writer("w")
    reader = attach(writer)
    writer.send([b"a", b"b"], deadline_seconds=1)
    place = word * 8 if word != 2 else 8  # The correlation is the sender's own: anything goes.
    writer._ring._records[place : place + 8] = b"\xfe" * 8
    with pytest.raises(QueueCorrupt):
        reader.receive(deadline_seconds=1)
    with pytest.raises(QueueCorrupt):
        reader.receive(deadline_seconds=1)


def test_everything_is_given_back(make_writer, attach) -> None:
    def once() -> int:
        writer = make_writer("near", "far")
        readers = [attach(writer, reader="near"), attach(writer, reader="far", remote=True)]
        writer.send([b"x"], deadline_seconds=1)
        for closable in (*readers, writer, *readers, writer):
            closable.close()
        # ZMQ closes its sockets in a thread of its own.
        until = time.monotonic() + PATIENCE_SECONDS
        while len(os.listdir("/proc/self/fd")) > baseline and time.monotonic() < until:
            os.sched_yield()
        return len(os.listdir("/proc/self/fd"))

    baseline = 1 << 30
    baseline = max(once() for _ in range(3))
    assert max(once() for _ in range(10)) <= baseline


def test_no_wake_up_is_lost(make_writer, attach, thread) -> None:
    """Pauses around the length of the spin, so that news come before, during and after the step into sleep, on both sides."""
    writer = make_writer("echo")
    attaching = thread.submit(start_echo, writer.address)
    process, responses = attaching.result(PATIENCE_SECONDS)
    opening = thread.submit(open_reader, responses, reader="client", generation=1, remote=False)
    try:
        writer.wait_until_ready(deadline_seconds=PATIENCE_SECONDS)
        reader = opening.result(PATIENCE_SECONDS)
        pauses = random.Random(1)
        for number in range(1, 5_001):
            until = time.perf_counter() + pauses.uniform(0, 120e-6)
            while time.perf_counter() < until:
                pass
            writer.send([number.to_bytes(8, "big")], correlation=number, deadline_seconds=PATIENCE_SECONDS)
            answer = reader.receive(deadline_seconds=PATIENCE_SECONDS)
            assert (answer.sequence, answer.correlation) == (number, number)
        reader.close()
    finally:
        process.kill()


def take_all(reader: Reader, found: list[tuple[int, int]], *, spin: bool) -> None:
    """Take until there is nothing, sleep, and so on until the reader's end is raised."""
    poll = select.poll()
    poll.register(reader.fileno(), select.POLLIN)
    while True:
        while (message := reader.take(spin=spin)) is not None:
            found.append((message.sequence, message.correlation))
        assert poll.poll(10_000), f"a wake-up was lost after message {len(found)}"


@pytest.mark.parametrize("spin", [False, True])
def test_whoever_polls_for_a_reader_misses_nothing(spin: bool, make_writer, attach, thread, remote) -> None:
    """As an executor waits for all its workers at once."""
    writer = make_writer("w")
    reader = attach(writer, remote=remote)

    def send() -> None:
        pauses = random.Random(2)
        for number in range(1, 2_001):
            until = time.perf_counter() + pauses.uniform(0, 120e-6)
            while time.perf_counter() < until:
                pass
            # Every hundredth is larger than the ring.
            writer.send([bytes(100_000 if number % 100 == 0 else 8)], correlation=number, deadline_seconds=PATIENCE_SECONDS)
        writer.close()

    sending = thread.submit(send)
    found: list[tuple[int, int]] = []
    with pytest.raises(QueueClosed):
        take_all(reader, found, spin=spin)
    sending.result(PATIENCE_SECONDS)
    assert found == [(number, number) for number in range(1, 2_001)]


@pytest.mark.parametrize("ends", ["cancel", "dismiss", "gone"])
def test_whoever_polls_for_a_reader_learns_of_its_end(ends: str, make_writer, attach, remote) -> None:
    writer = make_writer("w")
    reader = attach(writer, remote=remote)
    assert reader.take() is None
    if ends == "cancel":
        reader.cancel()
    elif ends == "dismiss":
        writer.dismiss("w", "the test wants it")
        writer.attend()
    else:
        writer._local.close()
        writer._remote.close()
    with pytest.raises({"cancel": QueueCancelled, "dismiss": ReaderDismissed, "gone": WriterGone}[ends]):
        take_all(reader, [], spin=False)


def test_a_remote_reader_learns_that_its_writer_is_gone(make_writer, attach) -> None:
    writer = make_writer("w")
    reader = attach(writer, remote=True)
    assert writer._remote is not None
    writer._remote.close()  # Without a word.
    with pytest.raises(WriterGone, match="broke after message 0"):
        reader.receive(deadline_seconds=PATIENCE_SECONDS)
