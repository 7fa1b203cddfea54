"""Command line and environment of each process that the launcher starts. Pure; tests pass another function for the first."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enginehouse_engine.drill import Drill
from enginehouse_engine.launcher.process import ACTOR_MANAGER, API_SERVER, ENGINE_CORE, WORKER, Process

HTTP_DESCRIPTOR: Final = 3
"""Where an API server finds the listening socket."""

HOLDS_WEIGHTS: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"}
"""A C library that asks for huge pages. Weights lie in memory of oneDNN and torch, which both take it from malloc. On huge pages
they are read faster, and the kernel frees them faster after a kill, before it closes the death pipe. With more than one arena half
of them would stay small.
"""


@dataclass(frozen=True)
class RunFiles:
    """What the launcher made for its children."""

    launcher_socket: Path
    config: Path
    fetched: Path
    """What the model's download printed."""
    ray: str = ""
    """Address of the Ray head, in the leader."""


def command_line(process: Process, files: RunFiles) -> list[str]:
    """``argv`` of an API server, an engine core, a worker or the actor manager."""
    common = ["--launcher-socket", str(files.launcher_socket), "--config", str(files.config)]
    if process.role == API_SERVER:
        module, own = "enginehouse_engine.api.process", ["--index", str(process.index), "--http-fd", str(HTTP_DESCRIPTOR)]
    elif process.role == ENGINE_CORE:
        module, own = "enginehouse_engine.core.process", ["--rank", str(process.rank)]
    elif process.role == ACTOR_MANAGER:
        module, own = "enginehouse_engine.ray.actor_manager", ["--address", files.ray]
    else:
        module, own = "enginehouse_engine.executor.worker_process", ["--rank", str(process.rank), "--index", str(process.index)]
    return [sys.executable, "-m", module, *common, *own, "--incarnation", str(process.incarnation)]


def drill_flags(process: Process, drills: Iterable[Drill]) -> list[str]:
    """What is to go wrong in this process: nothing in one that comes back after a drill."""
    return [f"--drill={drill}" for drill in drills if drill.role == process.role and process.incarnation == 1]


def environment(process: Process, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the launcher has itself, and for those that hold weights what these want."""
    return {**HOLDS_WEIGHTS, **inherited} if process.role in (ENGINE_CORE, WORKER) else dict(inherited)


def model_fetch_command_line(uri: str, *, revision: str, cache_dir: Path | None) -> list[str]:
    """``argv`` of the process that downloads an ``hf://`` model."""
    argv = [sys.executable, "-m", "enginehouse_engine.launcher.model_fetch", uri, "--revision", revision]
    return argv if cache_dir is None else [*argv, "--cache-dir", str(cache_dir)]
