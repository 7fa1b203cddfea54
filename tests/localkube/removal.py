"""Removing a cluster.

The one job: end what is left of a cluster and remove every trace of it, whatever state a crash left it in.
The invariant kept: processes first, then what the kernel keeps for them, then files; cut short at any point, it can be run again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
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
        _delete_interface(spec.host_interface)
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


def _delete_interface(interface: str) -> None:
    """Our end of the link takes the other one along.

    It would go with its namespace, but connections that ended unanswered keep a dead namespace for a minute or two.
    """
    done = subprocess.run(["ip", "link", "delete", interface], capture_output=True, text=True, timeout=_SECONDS, check=False)
    if Path("/sys/class/net", interface).exists():
        raise LocalkubeError(f"ip link delete {interface} exited {done.returncode}: {done.stderr.strip()}")
