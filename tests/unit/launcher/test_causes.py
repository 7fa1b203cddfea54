"""Every way a process can die, with real processes: what the launcher tells the monitor of it, and what it shows for it."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
from pathlib import Path
from typing import Any

import pytest

from fake_monitor import FakeMonitor, is_state

SERVES = {"api-server 0": "bound,ready=0", "engine-core 0": "addresses"}
CORE = "engine core of rank 0"


@pytest.fixture
def monitor(tmp_path: Path) -> FakeMonitor:
    return FakeMonitor(tmp_path / "monitor")


def is_death(message: dict[str, Any]) -> bool:
    return message["type"] == "exited" and not message["planned"]


@pytest.mark.parametrize(
    ("end", "expected", "message", "evidence"),
    [
        ("kill=9", ("Signal", None, 9), "was killed by SIGKILL", "does kill=9"),
        ("kill=11", ("Signal", None, 11), "was killed by SIGSEGV", "Fatal Python error: Segmentation fault"),
        ("abort=no room", ("Signal", None, 6), "was killed by SIGABRT", "what():  no room\nFatal Python error: Aborted"),
        ("exit=3", ("ExitCode", 3, None), "exited with code 3", "does exit=3"),
        ("exit=0", ("ExitCode", 0, None), "exited with code 0 although nobody asked it to", "does exit=0"),
        ("raise", ("ExitCode", 1, None), "exited with code 1", "RuntimeError: on purpose"),
        ("failed=Exception,exit=1", ("Exception", 1, None), ": the reason", "does exit=1"),
        ("failed=DeviceError,exit=1", ("DeviceError", 1, None), ": the reason", "does exit=1"),
    ],
)
def test_each_death_has_its_cause_and_its_last_lines(
    launched: Any, tmp_path: Path, monitor: FakeMonitor, end: str, expected: tuple[str, int, int], message: str, evidence: str
) -> None:
    behaviours = {**SERVES, "engine-core 0": f"addresses,wait,{end}", "engine-core 0 again": "unregistered"}
    one = launched(behaviours, "--monitor-socket", str(tmp_path / "monitor"))
    monitor.accept()
    monitor.say(type="stored")
    one.until("does wait")
    monitor.hear_until(is_state("Serving"))
    os.kill(one.pid(CORE), signal.SIGUSR1)
    death = monitor.hear_until(is_death)[-1][0]
    assert (death["class"], death["exitCode"], death["signal"]) == expected
    assert death["message"].removeprefix(CORE).strip() == message
    assert death["evidence"].startswith(f"last lines of {CORE}:\n")
    assert evidence in death["evidence"]
    monitor.close()


def test_survivors_of_a_rank_show_where_they_were_before_they_are_killed(
    launched: Any, tmp_path: Path, monitor: FakeMonitor
) -> None:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b"GGUF1234")
    flags = ("--model", str(model), "--executor", "Multiprocess", "--tensor-parallel", "2")
    workers = {"worker 0.0": "publish,peers,wait", "worker 0.1": "publish,peers,wait,kill=9"}
    core = {"api-server 0": "cores,bound", "engine-core 0": "publish,peers,addresses,hello"}
    one = launched(workers | core, *flags, "--monitor-socket", str(tmp_path / "monitor"))
    monitor.accept()
    monitor.say(type="stored")
    monitor.hear_until(is_state("Serving"))
    one.until(r"does wait\n(.*\n)*.*does wait")
    os.kill(one.pid("worker 1 of rank 0"), signal.SIGUSR1)
    heard = [message for message, _ in monitor.hear_until(lambda message: message.get("incarnation") == 2)]
    exits = {(message["role"], message["index"]): message for message in heard if message["type"] == "exited"}
    death, others = exits.pop(("worker", 1)), exits.values()
    assert death["planned"] is False
    for survivor, place in ((CORE, "_until_stop"), ("worker 0 of rank 0", "_act")):
        assert re.search(rf"^{survivor} was at .*stand_in.py:\d+ {place} < ", death["evidence"], re.MULTILINE)
    assert [(other["planned"], "evidence" in other) for other in others] == [(True, False), (True, False)]
    assert len(re.findall("^Current thread .* \\(most recent call first\\):", one.text(), re.MULTILINE)) == 2, "the log has it all"
    monitor.close()


def test_a_process_that_cannot_be_started_is_named_with_the_reason(launched: Any, tmp_path: Path, monitor: FakeMonitor) -> None:
    one = launched({**SERVES, "engine-core 0": "missing"}, "--monitor-socket", str(tmp_path / "monitor"))
    monitor.accept()
    monitor.say(type="stored")
    death = monitor.hear_until(is_death)[-1][0]
    assert (death["class"], death["role"], death["pid"]) == ("Exception", "engine-core", None)
    assert death["message"].startswith(f"{CORE} cannot be started: [Errno 2] No such file or directory: '/nowhere/python'")
    assert one.wait() == 1
    monitor.close()


def test_who_is_missing_at_the_end_of_a_start_shows_where_it_hangs(launched: Any) -> None:
    # The other has not registered and is not asked: lines of two who answer at once would come between each other.
    one = launched({"api-server 0": "unregistered", "engine-core 0": "stage=load,deaf"}, "--startup-timeout-seconds", "2")
    assert one.wait() == 1
    assert re.search(
        r"StartupTimeout: not ready after 2 s, waiting for: .*engine core of rank 0 \(pid \d+, stage load\)", one.text()
    )
    assert re.search(r"Current thread .*\n  File .*stand_in.py\", line \d+ in _act\n", one.text())


def test_nobody_is_asked_where_it_was_in_a_planned_end(launched: Any) -> None:
    one = launched({"api-server 0": "bound", "engine-core 0": "stage=load,deaf"})
    one.until("does deaf")
    one.process.terminate()
    assert one.wait() == 0
    assert "most recent call first" not in one.text()


def test_a_log_that_nobody_reads_delays_neither_the_word_of_a_death_nor_the_end(
    launched: Any, tmp_path: Path, monitor: FakeMonitor
) -> None:
    """As when the container runtime is restarted: its end of the container's log is there and is not read."""
    log = tmp_path / f"launcher-{len(list(tmp_path.iterdir())) + 1}.log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(log, os.O_WRONLY)
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    assert os.write(writer, b"x" * size) == size
    behaviours = {**SERVES, "engine-core 0": "stage=load,wait,kill=11", "engine-core 0 again": "exit=1"}
    one = launched(behaviours, "--monitor-socket", str(tmp_path / "monitor"))
    monitor.accept()
    monitor.say(type="stored")
    heard = monitor.hear_until(lambda message: message.get("role") == "engine-core")
    core = heard[-1][0]["pid"]
    os.kill(core, signal.SIGUSR1)
    death = monitor.hear_until(is_death)[-1][0]
    assert (death["signal"], "Segmentation fault" in death["evidence"]) == (11, True)
    assert one.wait() == 139
    assert not select.select([], [writer], [], 0)[1], "nobody has read anything"
    os.close(reader)
    os.close(writer)
    monitor.close()
