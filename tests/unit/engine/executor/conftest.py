"""Ranks that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enginehouse_engine.config import EngineConfig, ParallelConfig
from rank_processes import PATIENCE_SECONDS, UID, Rank

MakeRank = Callable[..., Rank]


@pytest.fixture
def make_rank(tmp_path: Path) -> Iterator[MakeRank]:
    made: list[Rank] = []

    def make(workers: int = 1, *, behaviours: dict[int, str | None] | None = None, core: bool = False, **changes: Any) -> Rank:
        fields: dict[str, Any] = {
            "replica_uid": UID,
            "model_path": "",
            "model_uri": "",
            "served_model_name": "m",
            "executor": "Multiprocess",
            "parallel": ParallelConfig(tensor=workers),
            "memory_budget_bytes": 1 << 30,
            "startup_timeout_seconds": PATIENCE_SECONDS,
            **changes,
        }
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Rank(folder, EngineConfig(**fields), behaviours=behaviours, core=core))
        return made[-1]

    yield make
    for rank in made:
        rank.close()
