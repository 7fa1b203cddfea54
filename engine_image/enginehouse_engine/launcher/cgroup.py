"""The memory that this container, or this machine, grants. Reads files only; cgroup v1 and v2.

Does not decide what is done with it: ``memory_budget.py`` does.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class MemoryView:
    """Where to look; tests point it at another tree."""

    cgroup_mount: Path = Path("/sys/fs/cgroup")
    proc: Path = Path("/proc")


def usable_memory_bytes(view: MemoryView | None = None) -> tuple[int, str]:
    """How much the engine may use in all, and where that figure comes from, for messages.

    The lowest limit of this process's cgroup and of those above it. Without one: what the machine has available now, since
    the rest belongs to somebody else.
    """
    view = view or MemoryView()
    machine = _meminfo(view)
    limits = [limit for limit in _limits(view) if limit < machine["MemTotal"]]
    if limits:
        return min(limits), "the container's memory limit"
    return machine["MemAvailable"], "the machine's available memory"


def oom_kills(view: MemoryView | None = None) -> int:
    """How many processes of this cgroup the kernel has killed for memory so far; 0 where it does not say."""
    view = view or MemoryView()
    for directory, version in _directories(view):
        file = directory / ("memory.events" if version == 2 else "memory.oom_control")
        try:
            fields = dict(line.split() for line in file.read_text().splitlines())
        except OSError:
            continue
        return int(fields.get("oom_kill", 0))
    return 0


class OomKills:
    """The kernel's kills for memory from now on, each to be put down to one process.

    On cgroup v1 one process dies at a time. On v2 the kubelet has the whole container die (``memory.oom.group``), this launcher
    included, unless it is told otherwise (``singleProcessOOMKill``): then nobody is left here, and the container's status says it.
    """

    def __init__(self, view: MemoryView | None = None) -> None:
        self._view = view
        self._explained = oom_kills(view)

    def explain(self, death_signal: int | None, *, killed_here: bool) -> bool:
        """Whether one of them explains this death; it then explains no other. Whom we killed ourselves needs no explanation."""
        explains = death_signal == signal.SIGKILL and not killed_here and oom_kills(self._view) > self._explained
        self._explained += explains
        return explains


def _limits(view: MemoryView) -> Iterator[int]:
    for directory, version in _directories(view):
        file = directory / ("memory.max" if version == 2 else "memory.limit_in_bytes")
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text != "max":
            yield int(text)


def _directories(view: MemoryView) -> Iterator[tuple[Path, int]]:
    """This process's memory cgroup and those above it, nearest first, each with the version of its hierarchy.

    Inside a container the path in ``/proc/self/cgroup`` may be the host's while the mount begins at the container: the folders
    that are not there are skipped by the readers, and the mount's root is always the last.
    """
    for line in (view.proc / "self/cgroup").read_text().splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            mount, version = view.cgroup_mount, 2
        elif "memory" in controllers.split(","):
            mount, version = view.cgroup_mount / "memory", 1
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        yield from ((mount / part, version) for part in (own, *own.parents))


def _meminfo(view: MemoryView) -> dict[str, int]:
    """Bytes by name; the kernel prints kibibytes."""
    rows = (line.split() for line in (view.proc / "meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}
