"""The cgroup folder of a cluster's pods.

The one job: make it in every hierarchy before the kubelet starts, remove it with everything below after the last process.
The invariant kept: two kubelets never share a cgroup root (each removes the other's pods as orphans).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from .errors import LocalkubeError

_MOUNT = Path("/sys/fs/cgroup")
_POLL_SECONDS = 0.05


def create(name: str) -> None:
    """Make the folder in every hierarchy."""
    for hierarchy in _hierarchies():
        folder = hierarchy / name
        if (hierarchy / "cgroup.controllers").exists() and hierarchy == _MOUNT:
            _delegate(hierarchy)
        folder.mkdir(exist_ok=True)
        # A v1 cpuset starts empty and accepts no process until it has both.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (hierarchy / file).exists() and (folder / file).exists():
                (folder / file).write_text((hierarchy / file).read_text())
        if (folder / "cgroup.controllers").exists() and hierarchy == _MOUNT:
            _delegate(folder)


def remove(name: str, *, timeout_seconds: float = 10.0) -> None:
    """Remove the folder everywhere, leaves first; a dying process may hold one for a moment."""
    deadline = time.monotonic() + timeout_seconds
    while left := existing(name):
        busy: list[str] = []
        for top in left:
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    busy.append(f"{folder}: {error.strerror}")
        if busy:
            if time.monotonic() > deadline:
                raise LocalkubeError(f"cgroup folders cannot be removed: {busy[0]}: end the processes in its cgroup.procs")
            time.sleep(_POLL_SECONDS)


def existing(name: str) -> list[Path]:
    """The folders of this name that are there now."""
    return [hierarchy / name for hierarchy in _hierarchies() if (hierarchy / name).is_dir()]


def _hierarchies() -> list[Path]:
    if (_MOUNT / "cgroup.controllers").exists():
        return [_MOUNT]
    return [folder for folder in sorted(_MOUNT.iterdir()) if folder.is_dir() and not folder.is_symlink()]


def _delegate(folder: Path) -> None:
    """cgroup v2: let child folders use every controller this one has."""
    for controller in (folder / "cgroup.controllers").read_text().split():
        try:
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:
            continue  # one that cannot be delegated (a real-time group, say) is not one the kubelet needs
