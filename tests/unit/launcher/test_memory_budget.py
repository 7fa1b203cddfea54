"""How much memory a rank gets, and from which file of the kernel that figure comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine.config import ConfigError
from enginehouse_engine.launcher.cgroup import MemoryView, OomKills, oom_kills, usable_memory_bytes
from enginehouse_engine.launcher.memory_budget import (
    API_SERVER_BYTES,
    CORE_PROCESS_BYTES,
    LAUNCHER_BYTES,
    MIB,
    RAY_ACTOR_BYTES,
    RAY_HEAD_BYTES,
    RAY_NODE_BYTES,
    TORCH_PROCESS_BYTES,
    budget_per_worker_bytes,
    member_process_bytes,
    rank_process_bytes,
    ray_bytes,
)
from enginehouse_engine.shared_memory_size import rank_shared_memory_bytes

GIB = 1024 * MIB
MACHINE = "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n"


def tree(root: Path, *, cgroup: str, files: dict[str, str]) -> MemoryView:
    view = MemoryView(cgroup_mount=root / "cgroup", proc=root / "proc")
    written = {"proc/self/cgroup": cgroup, "proc/meminfo": MACHINE, **{f"cgroup/{name}": text for name, text in files.items()}}
    for name, text in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return view


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"memory.max": f"{GIB}\n"}, GIB),
        ("0::/pod/engine\n", {"pod/engine/memory.max": "max\n", "pod/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        ("0::/pod/engine\n", {"pod/engine/memory.max": f"{3 * GIB}\n", "pod/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        ("0::/host/path/that/is/not/mounted\n", {"memory.max": f"{GIB}\n"}, GIB),
        ("5:cpu,cpuacct:/x\n4:memory:/pod\n", {"memory/pod/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        ("4:memory:/host/path\n0::/\n", {"memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
    ],
    ids=["v2", "v2 parent's", "v2 lowest", "v2 namespace", "v1", "v1 namespace, hybrid"],
)
def test_the_lowest_limit_above_this_process_counts(tmp_path: Path, cgroup: str, files: dict[str, str], expected: int) -> None:
    assert usable_memory_bytes(tree(tmp_path, cgroup=cgroup, files=files)) == (expected, "the container's memory limit")


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096), str(64 * GIB)], ids=["none", "v1 none", "above the machine"])
def test_without_a_limit_only_what_is_available_counts(tmp_path: Path, limit: str) -> None:
    view = tree(tmp_path, cgroup="0::/\n", files={"memory.max": limit})
    assert usable_memory_bytes(view) == (8 * GIB, "the machine's available memory")


def test_this_machine_says_something() -> None:
    usable, _ = usable_memory_bytes()
    assert usable > 64 * MIB
    assert oom_kills() >= 0


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {"memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n"}),
        ("4:memory:/a\n", {"memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"}),
    ],
    ids=["v2", "v1"],
)
def test_the_kernels_kills_are_counted(tmp_path: Path, cgroup: str, files: dict[str, str]) -> None:
    assert oom_kills(tree(tmp_path, cgroup=cgroup, files=files)) == 2


def test_kernels_that_do_not_count_kills_count_none(tmp_path: Path) -> None:
    assert oom_kills(tree(tmp_path, cgroup="0::/\n", files={})) == 0


def test_a_kill_for_memory_explains_one_death_and_none_that_we_or_nobody_killed(tmp_path: Path) -> None:
    """The rest of a broken rank is killed and may be reaped before the process that memory killed."""
    view = tree(tmp_path, cgroup="0::/\n", files={"memory.events": "oom_kill 2\n"})
    kills = OomKills(view)
    assert not kills.explain(9, killed_here=False), "those were before us"
    (view.cgroup_mount / "memory.events").write_text("oom_kill 4\n")
    assert not kills.explain(9, killed_here=True)
    assert not kills.explain(None, killed_here=False)
    assert not kills.explain(11, killed_here=False)
    assert [kills.explain(9, killed_here=False) for _ in range(3)] == [True, True, False]


def test_what_the_processes_keep_comes_off_first() -> None:
    own = rank_process_bytes("InProcess", workers=0)
    budget = budget_per_worker_bytes(8 * GIB, utilization_percent=90, ranks=2, workers=0, api_servers=3, rank_process_bytes=own)
    assert budget == (8 * GIB * 9 // 10 - LAUNCHER_BYTES - 3 * API_SERVER_BYTES - 2 * TORCH_PROCESS_BYTES) // 2


def test_each_worker_gets_its_share_and_only_workers_hold_torch() -> None:
    own = rank_process_bytes("Multiprocess", workers=3)
    budget = budget_per_worker_bytes(8 * GIB, utilization_percent=100, ranks=2, workers=3, api_servers=1, rank_process_bytes=own)
    queues = 2 * rank_shared_memory_bytes(local_workers=3)
    kept = LAUNCHER_BYTES + API_SERVER_BYTES + 2 * CORE_PROCESS_BYTES + 6 * TORCH_PROCESS_BYTES + queues
    assert budget == (8 * GIB - kept) // 6


def test_what_a_process_with_torch_is_said_to_keep_is_what_the_kernel_cannot_take_back() -> None:
    """Another torch may keep more: then the figure has to follow."""
    program = (
        "import torch; print(next(line.split()[1] for line in open('/proc/self/smaps_rollup') if line.startswith('Anonymous')))"
    )
    measured = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=120).stdout) * 1024
    assert measured < TORCH_PROCESS_BYTES


@given(
    limit=st.integers(1, 2**50),
    percent=st.integers(1, 100),
    ranks=st.integers(1, 64),
    workers=st.integers(0, 16),
    servers=st.integers(1, 16),
    own=st.integers(0, GIB),
)
def test_all_together_stay_within_the_share_or_it_is_refused(
    limit: int, percent: int, ranks: int, workers: int, servers: int, own: int
) -> None:
    def budget_within(limit: int) -> int:
        return budget_per_worker_bytes(
            limit, utilization_percent=percent, ranks=ranks, workers=workers, api_servers=servers, rank_process_bytes=own
        )

    try:
        budget = budget_within(limit)
    except ConfigError as error:
        needed = int(str(error).split("needed are at least ")[1].split(" MiB")[0]) * MIB
        assert needed > limit
        budget_within(needed)
        return
    assert budget >= 16 * MIB
    assert LAUNCHER_BYTES + servers * API_SERVER_BYTES + ranks * (max(1, workers) * budget + own) <= limit * percent / 100


def test_what_ray_keeps_is_taken_off_and_the_budget_of_a_member_depends_on_its_own_workers_alone() -> None:
    shape = {"cores": 0, "workers": 2, "workers_per_rank": 2}
    simulated, ray = (member_process_bytes(executor, **shape) for executor in ("Simulated", "Ray"))
    assert ray - simulated == 2 * (TORCH_PROCESS_BYTES - CORE_PROCESS_BYTES + RAY_ACTOR_BYTES)
    assert [ray_bytes("Ray", is_head=is_head) for is_head in (True, False)] == [RAY_HEAD_BYTES, RAY_NODE_BYTES]
    assert ray_bytes("Multiprocess", is_head=True) == 0
    common = {"utilization_percent": 100, "ranks": 1, "workers": 2, "api_servers": 0, "rank_process_bytes": ray}
    left = budget_per_worker_bytes(8 * GIB, **common) - budget_per_worker_bytes(8 * GIB, **common, ray_bytes=RAY_NODE_BYTES)
    assert left == RAY_NODE_BYTES // 2
