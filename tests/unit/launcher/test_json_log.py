"""The log as JSON: each line of an engine's log is an object, whoever wrote what, and evidence stays what it is as text."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import page_blocks
from enginehouse_engine import log_format
from enginehouse_engine.launcher.logs import Logs
from enginehouse_engine.launcher.process import ENGINE_CORE, Process
from members import DEADLINE_SECONDS, Member
from running_engine import SIMULATED, SOURCES

CORE = Process(role=ENGINE_CORE, rank=0, index=0, incarnation=1)
NOW = datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)


def objects(written: bytes) -> list[dict[str, Any]]:
    found = log_format.as_json(written, process="engine core of rank 0", now=NOW)
    assert found == b"" or found.endswith(b"\n")
    return [json.loads(line) for line in found.splitlines()]


def own(message: str, *, level: int = logging.INFO, created: datetime = NOW, name: str = "core 0") -> str:
    """A line as a process of the engine writes it."""
    record = logging.LogRecord("enginehouse.core", level, "f.py", 1, "%s", (message,), None)
    record.created, record.msecs = created.timestamp(), created.microsecond // 1000
    return logging.Formatter(log_format.text(name)).format(record) + "\n"


def test_a_line_of_ours_is_an_object_with_its_own_time_and_level() -> None:
    earlier = NOW - timedelta(seconds=3)
    assert objects(own("it is: so", level=logging.WARNING, created=earlier).encode()) == [
        {"time": "2026-01-01T11:59:57.250Z", "level": "warning", "process": "engine core of rank 0", "message": "it is: so"}
    ]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_the_time_is_the_same_in_every_zone(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert objects(own("now").encode())[0]["time"] == "2026-01-01T12:00:00.250Z"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("given", "zone"),
    [
        ("2026-02-30 10:00:00", "UTC"),
        ("0000-01-01 00:00:00", "UTC"),
        ("\u0660026-01-01 10:00:00", "UTC"),
        ("0001-01-01 00:00:00", "Asia/Kolkata"),
        ("9999-12-31 23:59:59", "America/New_York"),
    ],
)
def test_a_line_that_begins_as_ours_do_at_a_time_that_never_is_is_no_record_of_ours(
    given: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        (found,) = objects(f"{given},000 INFO x: so\n".encode())
    finally:
        monkeypatch.undo()
        time.tzset()
    assert (found["message"], "level" in found) == (f"{given},000 INFO x: so", False)


def test_a_traceback_and_a_stack_belong_to_the_record_before_them() -> None:
    stack = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: 2026 is no year\n'
    first, second = objects((own("it fails", level=logging.ERROR) + stack + own("next")).encode())
    assert (first["level"], first["message"]) == ("error", "it fails\n" + stack.strip())
    assert (second["level"], second["message"]) == ("info", "next")


def test_what_a_library_writes_is_an_object_of_now_without_a_level() -> None:
    first, second = objects(b"[W] no GPU\r 10%\r 20%\n\n" + own("next").encode())
    assert first == {"time": "2026-01-01T12:00:00.250Z", "process": "engine core of rank 0", "message": "[W] no GPU\n 10%\n 20%"}
    assert second["message"] == "next"


@given(st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(lambda text: own(text).encode())), max_size=6))
def test_no_word_is_lost_and_each_object_is_a_line(pieces: list[bytes]) -> None:
    written = b"".join(pieces)
    said = "\n".join(one["message"] for one in objects(written)).replace("\n", "")
    text = written.decode(errors="backslashreplace").replace("\r", "\n")
    lines = (log_format._HEAD.sub("", line, count=1) if log_format._HEAD.match(line) else line for line in text.split("\n"))
    assert said == "".join(lines)


def test_a_record_of_the_launcher_holds_its_traceback() -> None:
    try:
        raise ValueError('a "bad"\nvalue \udcff')
    except ValueError as error:
        raised = (type(error), error, error.__traceback__)
        record = logging.LogRecord("enginehouse.launcher", logging.ERROR, "f.py", 1, "%s", ("it ends",), raised)
    record.created = NOW.timestamp()
    line = log_format.Json("launcher").format(record)
    assert len(line.encode().splitlines()) == 1
    found = json.loads(line)
    assert (found["time"], found["level"], found["process"]) == ("2026-01-01T12:00:00.250Z", "error", "launcher")
    assert found["message"].startswith("it ends\nTraceback")


def test_the_record_that_the_page_shows_is_made_so() -> None:
    found = [block.content.strip() for block in page_blocks.blocks("json") if block.page == "docs/observability.md"]
    (shown,) = (content for content in found if "process" in json.loads(content))
    record = json.loads(shown)
    created = datetime.fromisoformat(record["time"])
    written = own(record["message"], level=logging.ERROR, created=created).encode()
    assert log_format.as_json(written, process=record["process"], now=NOW).decode().strip() == shown


def test_what_is_kept_of_a_process_is_what_it_wrote(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as output:
        logs = Logs(output.fileno(), json=True)
        logs.start()
        end = logs.open(CORE)
        os.write(end, own("last").encode() + b"words without an end")
        logs.catch_up(CORE)
        assert logs.kept(CORE) == own("last").encode() + b"words without an end"
        os.close(end)
        logs.close()
    assert [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()] == ["last", "words without an end"]


def test_every_line_of_a_real_engine_is_an_object_also_of_its_standard_output(tmp_path: Path) -> None:
    one = Member(tmp_path / "log", "--port=0", "--memory-limit-bytes=1000000000", "--log-format=json")
    try:
        one.until("ready: http")
        one.process.terminate()
        assert one.exit_code() == 0
    finally:
        one.process.kill()
        one.process.wait()
    said = [json.loads(line) for line in one.text().splitlines()]
    assert {"launcher", "engine core of rank 0", "API server 0"} == {record["process"] for record in said}
    assert all(datetime.fromisoformat(record["time"]) for record in said)
    by_launcher = [record["message"] for record in said if record["process"] == "launcher"]
    assert by_launcher.index("SIGTERM") < by_launcher.index("draining")
    assert not any(log_format._HEAD.match(record["message"]) for record in said)


def test_a_launcher_that_fails_by_a_mistake_of_its_own_says_so_in_an_object() -> None:
    program = """
import sys
from enginehouse_engine.__main__ import main
from enginehouse_engine.launcher.launch import Launcher
Launcher.run = lambda self: {}["mistake"]
sys.exit(main())
"""
    failed = subprocess.run(
        [sys.executable, "-c", program, *SIMULATED[2:], "--port=0", "--memory-limit-bytes=1000000000", "--log-format=json"],
        env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, check=False, timeout=DEADLINE_SECONDS,
    )  # fmt: skip
    assert (failed.returncode, failed.stdout) == (1, b"")
    last = [json.loads(line) for line in failed.stderr.splitlines()][-1]
    assert (last["level"], last["process"]) == ("critical", "launcher")
    assert last["message"].endswith("KeyError: 'mistake'")
