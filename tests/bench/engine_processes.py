"""What an engine's processes cost, seen from outside: start by parts, huge pages, system calls per step, end of file after a kill.

The one job: look at a running engine through /proc, its log and strace. Nothing here changes what is looked at, but
`end_of_file_seconds`, which kills. Does not put load on it.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

MODEL_ROLES: Final = ("executor.worker_process", "core.process")
"""The process that holds the weights is the first of these that there is."""

_LIVENESS_CALLS: Final = frozenset(
    {"wait4", "waitid", "kill", "tgkill", "pidfd_open", "pidfd_send_signal", "recvmsg_seqpacket", "poll_seqpacket"}
)
_STARTS: Final = {
    "launcher": r"started engine core|started worker",
    "imports": r"libraries are imported",
    "load": r"model \S+ in torch",
    "profile": r"context \d+ tokens, limited by",
}
"""Each part of a start ends with the last line of the log that says so; the handshake ends with the word on standard output."""


@dataclass(frozen=True)
class Started:
    """An engine that is ready."""

    url: str
    pid: int
    log: Path
    began: float
    """Seconds since the epoch, as the log's."""
    ready: float


def pids(started: Started) -> dict[str, list[int]]:
    """The launcher's children by module."""
    found: dict[str, list[int]] = {}
    for child in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split():
        arguments = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        found.setdefault(arguments[2].removeprefix("enginehouse_engine."), []).append(int(child))
    return found


def model_process(started: Started) -> int:
    """The one that holds the weights."""
    running = pids(started)
    return next(running[role][0] for role in MODEL_ROLES if role in running)


def start_parts(started: Started) -> dict[str, float]:
    """Seconds from the start of the launcher to ready, by part."""
    lines = started.log.read_text().splitlines()
    parts, before = {}, started.began
    for part, pattern in _STARTS.items():
        moments = [_moment(line) for line in lines if re.search(pattern, line)]
        if moments:
            parts[part] = round(max(moments) - before, 3)
            before = max(moments)
    parts["handshake"] = round(started.ready - before, 3)
    parts["all"] = round(started.ready - started.began, 3)
    return parts


def _moment(line: str) -> float:
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()


def memory(pid: int) -> dict[str, int]:
    """Resident bytes of a process, and how many are on huge pages."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()

    def read(field: str) -> int:
        found = re.search(rf"^{field}:\s+(\d+) kB", rollup, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    return {"resident_bytes": read("Rss"), "anonymous_bytes": read("Anonymous"), "huge_page_bytes": read("AnonHugePages")}


def system_calls(pid: int, work: Callable[[], int]) -> dict[str, Any]:
    """Of the main thread of a process while ``work`` runs, per step by name; ``work`` returns its steps.

    The main thread alone: OpenMP's others only wait for it. A futex is its wait for them, longer under strace than without.
    """
    output = Path(f"/tmp/enginehouse-strace-{os.getpid()}")
    command = ["strace", "-yy", "-o", str(output), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            tracer.stderr.readline()  # "attached"
            steps = work()
        finally:
            tracer.send_signal(signal.SIGINT)
    names: Counter[str] = Counter()
    liveness = 0
    for line in output.read_text().splitlines():
        if found := re.match(r"(\w+)\(", line):
            names[found[1]] += 1
            # The launcher's control socket is the only one of this kind; among others in one poll it costs nothing.
            alone = "SEQPACKET" in line and (found[1] != "poll" or line.count("fd=") == 1)
            liveness += alone or found[1] in _LIVENESS_CALLS
    output.unlink()
    per_step = {name: round(count / steps, 2) for name, count in names.most_common()}
    return {"steps": steps, "per_step": per_step, "liveness": liveness}


def end_of_file_seconds(pid: int) -> float:
    """From SIGKILL to end of file on the death pipe of a process. The pipe is opened anew through /proc, for reading."""
    folder = Path(f"/proc/{pid}/fd")
    # The write end has the highest number (registration.py).
    pipe = max(int(entry.name) for entry in folder.iterdir() if os.readlink(entry).startswith("pipe:"))
    reader = os.open(folder / str(pipe), os.O_RDONLY | os.O_NONBLOCK)
    try:
        poller = select.poll()
        poller.register(reader, select.POLLHUP)
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while not any(event & select.POLLHUP for _, event in poller.poll(60_000)):
            pass
        return time.perf_counter() - began
    finally:
        os.close(reader)
