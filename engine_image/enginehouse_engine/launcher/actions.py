"""What ``lifecycle.py`` decides and ``launch.py`` does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enginehouse_engine.launcher.process import Process


@dataclass(frozen=True)
class FetchModel:
    """Make the model's path known; ``Lifecycle.model_found`` or ``Lifecycle.refused`` follows."""


@dataclass(frozen=True)
class Start:
    """Write the configuration and start these processes."""

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


@dataclass(frozen=True)
class Report:
    """``exited`` for the monitor."""

    process: Process
    message: dict[str, Any]


Action = FetchModel | Start | Send | Kill | Report
