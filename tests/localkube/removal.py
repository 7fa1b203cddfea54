"""Removing a cluster.

The one job: end what is left of a cluster and remove every trace of it, whatever state a crash left it in.
The invariant kept: processes first, then what the kernel keeps for them, then files; cut short at any point, it can be run again.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from . import cgroups
from .errors import LocalkubeError
from .paths import ClusterPaths
from .processes import processes_of
from .spec import ClusterSpec, read_spec

_SECONDS = 30.0
_POLL_SECONDS = 0.03


def remove(paths: ClusterPaths) -> None:
    """Leave nothing of the cluster; harmless when there is nothing."""
    spec = read_spec(paths)
    if spec is None:
        # Nothing is started before the description is stored, so files are all there can be.
        shutil.rmtree(paths.root, ignore_errors=True)
        return
    _kill(spec)
    if spec.full:
        _wait_interface_gone(spec.host_interface)
        cgroups.remove(spec.cgroup)
    shutil.rmtree(paths.root)


def _kill(spec: ClusterSpec) -> None:
    deadline = time.monotonic() + _SECONDS
    while left := processes_of(spec.marker):
        if time.monotonic() > deadline:
            raise LocalkubeError(f"processes of cluster {spec.name} survive SIGKILL: {left}")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_POLL_SECONDS)


def _wait_interface_gone(interface: str) -> None:
    """The kernel takes a dead namespace's interfaces apart in the background."""
    deadline = time.monotonic() + _SECONDS
    while Path("/sys/class/net", interface).exists():
        if time.monotonic() > deadline:
            raise LocalkubeError(f"interface {interface} is still there: ip link delete {interface}")
        time.sleep(_POLL_SECONDS)
