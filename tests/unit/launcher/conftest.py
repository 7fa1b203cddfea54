"""A launcher for each test that asks for one, killed when the test is over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launched_engine import Launched


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    started: list[Launched] = []

    def start(behaviours: dict[str, str], *flags: str) -> Launched:
        started.append(Launched(tmp_path, behaviours, *flags))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()
        shutil.rmtree(one.temporary)
