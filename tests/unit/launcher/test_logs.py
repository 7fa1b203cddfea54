"""What processes write goes to one place unchanged, its end is kept, and nobody who does not read holds the launcher up."""

from __future__ import annotations

import os
import pty
import select
import threading
from collections.abc import Iterator

import pytest

from enginehouse_engine.launcher.logs import KEPT_BYTES, Logs
from enginehouse_engine.launcher.process import ENGINE_CORE, Process

DEADLINE_SECONDS = 30.0
CORES = [Process(role=ENGINE_CORE, rank=rank, index=0, incarnation=1) for rank in range(3)]


class Output:
    """Where the logs go; read when a test says so."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            assert select.select([self.read_end], [], [], DEADLINE_SECONDS)[0], data
            data += os.read(self.read_end, count - len(data))
        return data

    def has_something(self) -> bool:
        return bool(select.select([self.read_end], [], [], 0)[0])

    def fill(self) -> None:
        """Nobody reads: whoever writes waits."""
        os.set_blocking(self.write_end, False)
        try:
            while True:
                os.write(self.write_end, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(self.write_end, True)


@pytest.fixture
def output() -> Iterator[Output]:
    one = Output()
    yield one
    os.close(one.write_end)


@pytest.fixture
def logs(output: Output) -> Iterator[Logs]:
    one = Logs(output.write_end)
    one.start()
    yield one
    os.close(output.read_end)  # whoever still writes is let go
    one.close()


def test_bytes_are_passed_on_as_they_are_and_those_of_one_process_in_their_order(logs: Logs, output: Output) -> None:
    ends = [logs.open(core) for core in CORES]
    pieces = [b"%d: %d \xff\x00 no end of line" % (core, number) for number in range(50) for core in range(3)]
    for number, piece in enumerate(pieces):
        os.write(ends[number % 3], piece)
    for end in ends:
        os.close(end)
    found = output.read(sum(map(len, pieces)))
    for core in range(3):
        own = pieces[core::3]
        assert [piece for _, piece in sorted((found.index(piece), piece) for piece in own)] == own
    logs.close()
    assert not output.has_something()


def test_nobody_writes_into_the_line_of_another(logs: Logs, output: Output) -> None:
    """Two survivors that write much and then their stacks in many small pieces, while the launcher speaks, too."""
    ends = [logs.open(core) for core in CORES[:2]]
    line, said = b'  File "worker.py", line 7 in step\n', b"launcher: stopping\n"
    pieces = [line[place : place + 5] for place in range(0, len(line), 5)]
    before = b"much at once\n" * 400
    pieces[0] = before + pieces[0]
    for piece in pieces:
        for core, end in enumerate(ends):
            os.write(end, piece)
            logs.catch_up(CORES[core])
        logs.write(said.decode())
    expected = [*before.splitlines(keepends=True), line] * 2 + [said] * len(pieces)
    assert sorted(output.read(sum(map(len, expected))).splitlines(keepends=True)) == sorted(expected)
    for end in ends:
        os.close(end)


def test_a_line_that_never_ends_is_passed_on_and_so_is_what_is_drawn_over_itself(logs: Logs, output: Output) -> None:
    end = logs.open(CORES[0])
    os.write(end, b"\r 10 %")
    os.write(end, b"\r 20 %")
    assert output.read(7) == b"\r 10 %\r"
    os.write(end, b"x" * 5000)
    assert output.read(5 + 5000) == b" 20 %" + b"x" * 5000
    os.close(end)


def test_the_end_of_what_a_process_wrote_is_kept(logs: Logs, output: Output) -> None:
    end = logs.open(CORES[0])
    os.write(end, b"a" * KEPT_BYTES)
    logs.catch_up(CORES[0])
    position = logs.position(CORES[0])
    os.write(end, b"the end")
    logs.catch_up(CORES[0])
    assert len(logs.kept(CORES[0])) == KEPT_BYTES
    assert logs.kept(CORES[0], start=position) == b"the end"
    assert set(logs.kept(CORES[0], end=position)) == set(b"a")
    assert logs.kept(CORES[1]) == b""
    os.close(end)
    output.read(KEPT_BYTES + 7)
    logs.close()


def test_nobody_who_does_not_read_keeps_a_last_word_from_being_heard(logs: Logs, output: Output) -> None:
    output.fill()
    end = logs.open(CORES[0])
    for _ in range(3):  # the first may be what the thread holds in its hands
        os.write(end, b"last words\n")
        os.close(end)
        logs.catch_up(CORES[0])
        assert logs.kept(CORES[0]) == b"last words\n"
        end = logs.open(CORES[0])
    for number in range(10_000):
        logs.write(f"the launcher says {number}\n")
    os.close(end)


def test_a_process_waits_while_nobody_reads_and_loses_nothing(logs: Logs, output: Output) -> None:
    end = logs.open(CORES[0])
    size = 1 << 20
    line = b"y" * 4095 + b"\n"
    writer = threading.Thread(target=lambda: [os.write(end, line) for _ in range(size // len(line))])
    writer.start()
    assert output.read(size) == line * (size // len(line))
    writer.join(DEADLINE_SECONDS)
    assert not writer.is_alive()
    os.close(end)
    logs.close()


def test_a_descendant_that_keeps_the_pipe_open_holds_up_nothing_and_is_still_passed_on(logs: Logs, output: Output) -> None:
    end = logs.open(CORES[0])
    os.write(end, b"dies")
    logs.catch_up(CORES[0])
    assert logs.kept(CORES[0]) == b"dies"
    logs.forget(CORES[0])
    os.write(end, b" and lives\nto the")
    assert output.read(15) == b"dies and lives\n"
    os.write(end, b" end")
    logs.close()
    assert output.read(10) == b"to the end"
    os.close(end)


def test_a_last_line_without_an_end_is_passed_on_once(logs: Logs, output: Output) -> None:
    end = logs.open(CORES[0])
    os.write(end, b"words without an end")
    logs.catch_up(CORES[0])
    os.close(end)
    logs.close()
    assert output.read(20) == b"words without an end"
    assert not output.has_something()


def test_a_process_goes_on_when_nobody_will_ever_read() -> None:
    read_end, write_end = os.pipe()
    logs = Logs(write_end)
    logs.start()
    os.close(read_end)
    end = logs.open(CORES[0])
    for _ in range(100):
        os.write(end, b"z" * 4096)  # more than a pipe holds
    os.close(end)
    logs.close()
    os.close(write_end)


def test_processes_get_a_terminal_as_it_is() -> None:
    leader, terminal = pty.openpty()
    logs = Logs(terminal)
    logs.start()
    end = logs.open(CORES[0])
    assert os.isatty(end)
    os.write(end, b"seen")
    assert os.read(leader, 10) == b"seen"
    logs.catch_up(CORES[0])
    assert logs.kept(CORES[0]) == b""
    logs.close()
    for descriptor in (leader, terminal, end):
        os.close(descriptor)
