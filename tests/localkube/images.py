"""Placeholder."""

from __future__ import annotations

from .paths import CachePaths

TARGETS = ("operator", "engine")


def build_and_import(cache: CachePaths, *, targets: tuple[str, ...]) -> list[str]:
    return []
