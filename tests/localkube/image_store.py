"""Placeholder."""

from __future__ import annotations

from pathlib import Path

from .paths import CachePaths


def ensure_pause(cache: CachePaths) -> None:
    pass


def clone(cache: CachePaths, *, target: Path) -> None:
    pass
