"""What ``lifecycle.py`` decides and ``launch.py`` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enginehouse_engine.launcher.process import Process


@dataclass(frozen=True)
class FetchModel:
    """Make the model's path known; ``Lifecycle.model_found`` or ``Lifecycle.refused`` follows."""


@dataclass(frozen=True)
class StartRay:
    """Bring up this pod's part of the Ray cluster; ``Lifecycle.ray_runs`` or ``Lifecycle.refused`` follows."""


@dataclass(frozen=True)
class Start:
    """Start these processes. Actors come by themselves once they are wanted: ``Lifecycle.started`` is told when they register."""

    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Send:
    """A control message."""

    process: Process
    message: dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """SIGKILL to the process and its descendants."""

    process: Process
    asked_first: bool = False
    """For its stacks: somebody's death is why it is killed."""
    farewell: bool = False
    """SIGTERM first: it has a moment to tell others that it goes."""


@dataclass(frozen=True)
class Report:
    """``exited`` for the monitor: of this member's processes, since the others' own monitors are told."""

    process: Process
    message: dict[str, Any]
    nobody_else_can: bool = False
    """Of another member's process: its monitor is as silent as its launcher."""


Action = FetchModel | StartRay | Start | Send | Kill | Report
