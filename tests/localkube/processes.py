"""Processes and their owner.

The one job: start components, wait for them with deadlines, restart those that die, reap everything.
The invariant kept: every component has this process as parent and dies with it (PR_SET_PDEATHSIG, and the end of the pid
namespace where there is one). A component that dies while the cluster starts fails the start with the tail of its log.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .control_plane import Component
from .errors import LocalkubeError
from .paths import ClusterPaths

MARKER_VARIABLE = "ENGINEHOUSE_LOCALKUBE"
_NS_GET_PARENT = 0xB702  # ioctl_ns(2)
_POLL_SECONDS = 0.03
_RESTARTS = 5  # of one component within the window; more means it will never work
_RESTART_WINDOW_SECONDS = 60.0


class Owner:
    """The parent of a cluster's components."""

    def __init__(self, paths: ClusterPaths, *, marker: str) -> None:
        self._paths = paths
        self._environment = {**os.environ, MARKER_VARIABLE: marker}
        self._running: dict[int, Component] = {}
        self._popen: dict[int, subprocess.Popen[bytes]] = {}
        self._deaths: dict[str, list[float]] = {}

    def start(self, component: Component) -> None:
        """Start one component; its output is appended to its log."""
        with (self._paths.logs / f"{component.name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *component.command],
                env={**self._environment, **component.environment}, cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._running[process.pid] = component
        self._popen[process.pid] = process

    def wait(self, ready: Callable[[], bool], *, timeout_seconds: float, missing: str, log_of: str) -> None:
        """Poll until `ready`; name what is missing, with the tail of a log, when it never comes."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            for pid, process in self._popen.items():
                if (code := process.poll()) is not None:
                    name = self._running[pid].name
                    raise LocalkubeError(f"{name} ended with {code} while the cluster started:\n{self.log_tail(name)}")
            if time.monotonic() > deadline:
                raise LocalkubeError(f"{missing}: not within {timeout_seconds:.0f} s. Last of {log_of}:\n{self.log_tail(log_of)}")
            time.sleep(_POLL_SECONDS)

    def run_forever(self) -> None:
        """Reap children; restart components at once. Returns when one dies over and over."""
        while True:
            pid, status = os.waitpid(-1, 0)
            self._popen.pop(pid, None)
            component = self._running.pop(pid, None)
            if component is None:
                continue  # an orphan of a container: as process 1 of the namespace we are its reaper
            now = time.monotonic()
            deaths = [at for at in self._deaths.get(component.name, []) if now - at < _RESTART_WINDOW_SECONDS] + [now]
            self._deaths[component.name] = deaths
            self._note(f"{component.name} ended with {os.waitstatus_to_exitcode(status)}, starting it again")
            if len(deaths) > _RESTARTS:
                self._note(f"{component.name} died {len(deaths)} times in a minute, ending the cluster")
                return
            self.start(component)

    def log_tail(self, name: str, *, lines: int = 15) -> str:
        """The last lines of a component's log."""
        return log_tail(self._paths.logs / f"{name}.log", lines=lines)

    def _note(self, text: str) -> None:
        with (self._paths.logs / "supervisor.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def log_tail(path: Path, *, lines: int) -> str:
    """The last lines of a file, or a word that there are none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return f"(no {path.name})"


def processes_of(marker: str) -> dict[int, str]:
    """Every process of one start of a cluster, by pid, with its name: marked ones and all in their pid namespaces."""
    wanted = f"{MARKER_VARIABLE}={marker}".encode()
    own_namespace = _namespace("self")
    found: dict[int, str] = {}
    namespaces: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            namespaces[int(entry)] = _namespace(entry)
            if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found[int(entry)] = Path("/proc", entry, "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone meanwhile, or another user's: ours are always readable
    inside = {namespaces[pid] for pid in found} - {own_namespace}
    strangers = {pid: namespace for pid, namespace in namespaces.items() if namespace != own_namespace and pid not in found}
    for pid, namespace in strangers.items() if inside else ():
        try:
            if namespace in inside or inside & set(_outer_namespaces(pid)):
                found[pid] = Path("/proc", str(pid), "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _namespace(pid: str) -> int:
    return os.stat(f"/proc/{pid}/ns/pid").st_ino


def _outer_namespaces(pid: int) -> Iterator[int]:
    """The pid namespaces around a process's own; a container has one inside its cluster's."""
    descriptor = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
    while True:
        try:
            outer = fcntl.ioctl(descriptor, _NS_GET_PARENT)
        except PermissionError:
            return  # the next one is our own or around it
        finally:
            os.close(descriptor)
        yield os.fstat(outer).st_ino
        descriptor = outer
