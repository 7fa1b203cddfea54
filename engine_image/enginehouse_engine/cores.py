"""How many processor cores this process may use.

Invariant: what the kernel would let it use, quota included, not what the machine has: a pod with two cores on a machine of 64
would otherwise start 64 threads that wait for each other.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """At least 1: the smaller of the affinity mask and the cgroup's quota, rounded up."""
    allowed = len(os.sched_getaffinity(0))
    quota = _quota_v2(cgroup / "cpu.max") or _quota_v1(cgroup / "cpu")
    return max(1, min(allowed, math.ceil(quota) if quota else allowed))


def _quota_v2(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None


def spin_briefly() -> None:
    """Have OpenMP's threads sleep soon when they wait for each other. Call before torch is imported.

    By default they spin for milliseconds, which on shared cores keeps the very thread from running that they wait for: with
    two busy neighbours on two cores SmolLM2 made 1.3 tokens per second with the default and 13 with a short spin. It has to
    outlast the gaps between the products of a layer, though: with 2000 the threads slept hundreds of times in a step, and a
    step that takes 13 ms took 38 (``docs/adr/0067-engine-speed.md``).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
