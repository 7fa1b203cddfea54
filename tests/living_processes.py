"""The processes of a pod as this machine knows them: found by the pod's cgroup, told apart by their command lines.

Invariant: a process is its pid and the moment of its start, so that a pid that was given again is nobody's. For clusters of
localkube, whose pods are processes of this machine. Does not know objects of the API but their UIDs.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localkube import cgroups
from localkube.cluster import Cluster
from localkube.errors import LocalkubeError
from localkube.paths import cluster_paths
from localkube.spec import read_spec

MODULES = {
    "enginehouse_engine": "launcher",
    "enginehouse_engine.api.process": "api-server",
    "enginehouse_engine.core.process": "engine-core",
    "enginehouse_engine.executor.worker_process": "worker",
    "enginehouse_operator.monitor": "monitor",
}

# Takes memory of a container until the kernel has ended one process in it: not this one, since pods are offered to it first.
# What that process leaves is not taken: the next one would have to go.
_TAKE_MEMORY = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
count = next(file for file in (folder / 'memory.events', folder / 'memory.oom_control') if file.exists())
before = count.read_text()
(folder / 'cgroup.procs').write_text(str(os.getpid()))
held = []
while [line for line in count.read_text().splitlines() if 'oom_kill ' in line and line not in before.splitlines()] == []:
    held.append(b'\\1' * (1 << 20))
"""
_MEMORY_SECONDS = 60


@dataclass(frozen=True)
class PodProcess:
    """One process. ``role`` is empty for those that are none of the engine's."""

    pid: int
    started_ticks: int
    role: str
    rank: int | None
    index: int
    incarnation: int

    @property
    def is_alive(self) -> bool:
        """A zombie is not."""
        found = _state(self.pid)
        return found is not None and found[1] == self.started_ticks and found[0] not in "ZX"

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)


def folders(cluster: Cluster, pod_uid: str) -> list[Path]:
    """Of the pod, in the hierarchy that counts memory; none when the kubelet has cleaned up."""
    spec = read_spec(cluster_paths(cluster.name))
    if spec is None:
        raise LocalkubeError(f"no cluster {cluster.name} of localkube runs: these processes are of another machine")
    memory = [top for top in cgroups.existing(spec.cgroup) if top.parent.name in ("memory", "cgroup")]
    found = [top / "kubepods" / quality / f"pod{pod_uid}" for top in memory for quality in ("", "burstable", "besteffort")]
    return [folder for folder in found if folder.is_dir()]


def processes(cluster: Cluster, pod_uid: str) -> list[PodProcess]:
    """All that live now, of all containers."""
    found = [_described(pid) for folder in folders(cluster, pod_uid) for pid in _pids(folder)]
    return sorted((process for process in found if process is not None), key=lambda process: process.pid)


def end_for_memory(cluster: Cluster, pod_uid: str, victim: PodProcess) -> None:
    """Have the kernel end one process, the largest of its container, because there is no memory left in it."""
    (container,) = (
        folder for top in folders(cluster, pod_uid) for folder in top.iterdir() if folder.is_dir() and victim.pid in _pids(folder)
    )
    pidfd = os.pidfd_open(victim.pid)
    try:
        subprocess.run([sys.executable, "-c", _TAKE_MEMORY, str(container)], timeout=_MEMORY_SECONDS, check=True)
        assert select.select([pidfd], [], [], _MEMORY_SECONDS)[0], f"the kernel took another one than {victim}"
    finally:
        os.close(pidfd)


def shared_memory_bytes(launcher: PodProcess) -> int:
    """What is used of the pod's /dev/shm."""
    volume = os.statvfs(f"/proc/{launcher.pid}/root/dev/shm")
    return (volume.f_blocks - volume.f_bfree) * volume.f_frsize


def mounts_of(cluster: Cluster, pod_uid: str) -> list[str]:
    """Where volumes of the pod are mounted on its node."""
    runtimes = [pid for pid, name in cluster.processes().items() if name == "containerd"]
    # A child that has yet to become another program has the same name, and may be gone by now.
    (runtime,) = (pid for pid in runtimes if _parent(pid) not in (None, *runtimes))
    return [line.split()[4] for line in Path(f"/proc/{runtime}/mountinfo").read_text().splitlines() if pod_uid in line]


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return None


def _pids(folder: Path) -> Iterator[int]:
    """Of a pod or of one of its containers; one that goes meanwhile has none."""
    for directory, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            yield from map(int, Path(directory, "cgroup.procs").read_text().split())


def _described(pid: int) -> PodProcess | None:
    state = _state(pid)
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return None
    if state is None or state[0] in "ZX":
        return None
    role = next((MODULES[word] for word in words if word in MODULES), "")
    rank = _flag(words, "--rank")
    return PodProcess(
        pid=pid,
        started_ticks=state[1],
        role=role,
        rank=rank,
        index=_flag(words, "--index") or 0,
        incarnation=_flag(words, "--incarnation") or 0,
    )


def _flag(words: list[str], flag: str) -> int | None:
    return int(words[words.index(flag) + 1]) if flag in words else None


def _state(pid: int) -> tuple[str, int] | None:
    """Its letter and the moment of its start; None = gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


def own_pid(pid: int) -> int | None:
    """Its number in its own pid namespace; None = gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return int(next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:")))


def listening_ports(process: PodProcess) -> int:
    """How many TCP ports are listened on in its pod."""
    tables = (Path(f"/proc/{process.pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    return sum(line.split()[3] == "0A" for table in tables for line in table)
