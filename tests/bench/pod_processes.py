"""The processes of a pod, seen from the host: their pids, their memory, what they log; and kill -9 to one of them.

The one job: find them by the pod's cgroup and module, and look at them from outside through /proc. Only where the kubelet runs on
this machine. Invariant: a signal goes to a pidfd that was opened when the process was found, so never to a stranger.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from localkube.cluster import Cluster

LAUNCHER = "enginehouse_engine"
ENGINE_CORE = "enginehouse_engine.core.process"
WORKER = "enginehouse_engine.executor.worker_process"


@dataclass(frozen=True)
class Found:
    """One process: the first word of its command line, and the module that it runs (empty = of another kind)."""

    pid: int
    command: str
    module: str


def of_pod(uid: str) -> list[Found]:
    """All processes of a pod, the sandbox's too."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"pod{uid}" not in (entry / "cgroup").read_text():
                continue
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        found.append(Found(int(entry.name), words[0], module))
    return found


def numbers_in_the_engine(uid: str) -> dict[int, int]:
    """The pids of the processes of a pod's engine container, by those that they have in there."""
    processes = of_pod(uid)
    (launcher,) = (process.pid for process in processes if process.module == LAUNCHER)
    found = {}
    for process in processes:
        folder = Path(f"/proc/{process.pid}")
        try:
            if os.readlink(folder / "ns" / "pid") == os.readlink(f"/proc/{launcher}/ns/pid"):
                inside = re.findall(r"^NSpid:.*\t(\d+)$", (folder / "status").read_text(), re.MULTILINE)
                found[int(inside[0])] = process.pid
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile
    return found


def only(uid: str, module: str) -> int:
    """The pid of the only process of a pod that runs ``module``."""
    pids = [process.pid for process in of_pod(uid) if process.module == module]
    if len(pids) != 1:
        raise RuntimeError(f"one process {module} was wanted in the pod {uid}, found pids {pids}")
    return pids[0]


@contextmanager
def pidfds(pids: list[int]) -> Iterator[dict[int, int]]:
    """Opened for each, by pid."""
    opened: dict[int, int] = {}
    try:
        for pid in pids:
            opened[pid] = os.pidfd_open(pid)
        yield opened
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def kill(pidfd: int) -> float:
    """kill -9; the moment right before the system call, in seconds since the epoch."""
    at = time.time()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return at


def gone_at(descriptors: list[int], *, seconds: float) -> float:
    """When the last of these processes was gone, seconds since the epoch."""
    poller = select.poll()
    left = set(descriptors)
    for descriptor in left:
        poller.register(descriptor, select.POLLIN)
    deadline = time.time() + seconds
    at = time.time()
    while left:
        ready = poller.poll(max(0.0, deadline - time.time()) * 1000)
        at = time.time()
        if not ready:
            raise RuntimeError(f"{len(left)} processes still live after {seconds:g} s")
        for descriptor, _ in ready:
            poller.unregister(descriptor)
            left.discard(descriptor)
    return at


def death_pipe(pid: int) -> int:
    """The pipe that closes when a registered process is gone, opened anew for reading."""
    folder = Path(f"/proc/{pid}/fd")
    # The write end has the highest number (registration.py).
    pipe = max(int(entry.name) for entry in folder.iterdir() if os.readlink(entry).startswith("pipe:"))
    return os.open(folder / str(pipe), os.O_RDONLY | os.O_NONBLOCK)


def hung_up_at(read_end: int, *, seconds: float) -> float:
    """When the other end of a pipe was closed, seconds since the epoch."""
    poller = select.poll()
    poller.register(read_end, 0)
    if not poller.poll(seconds * 1000):
        raise RuntimeError(f"a pipe is still open after {seconds:g} s")
    return time.time()


def private_bytes(pid: int) -> dict[str, int]:
    """Private resident memory, and how much of it is on huge pages."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    private = (int(fields["Private_Clean"]) + int(fields["Private_Dirty"])) * 1024
    return {
        "private_bytes": private,
        "huge_page_bytes": int(fields["AnonHugePages"]) * 1024,
        "resident_bytes": int(fields["Rss"]) * 1024,
    }


class Log:
    """Of one container: opened while its pod lives, readable after the kubelet has removed it."""

    def __init__(self, running: Cluster, pod: dict[str, dict[str, str]], container: str) -> None:
        if running.logs is None:
            raise RuntimeError("logs of containers are read where the kubelet writes them: the cluster has to be a local one")
        names = pod["metadata"]
        folder = f"{names['namespace']}_{names['name']}_{names['uid']}"
        path = running.logs.parent / "pod-logs" / folder / container / "0.log"
        self._file: IO[str] = path.open()

    def moments(self, pattern: str) -> list[float]:
        """When each line that matches was logged, by the process's own clock (milliseconds), in seconds since the epoch."""
        lines = self.lines(pattern)
        return [_moment(found[0]) for line in lines if (found := re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", line))]

    def lines(self, pattern: str) -> list[str]:
        """All that match."""
        self._file.seek(0)
        return [line for line in self._file if re.search(pattern, line)]

    def close(self) -> None:
        self._file.close()


def _moment(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC).timestamp()
