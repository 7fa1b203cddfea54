"""Ray of one node for all tests of a file, and for each test a fresh actor manager with a launcher that only listens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actor_manager_process import ActorManagerProcess
from ray_nodes import RayNodes


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head with two accelerators, member 0."""
    cluster = RayNodes()
    try:
        cluster.start(0, accelerators=2)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def start(nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ActorManagerProcess]]:
    """An actor manager of the test's own."""
    started: list[ActorManagerProcess] = []

    def start(uid: str = "another") -> ActorManagerProcess:
        started.append(ActorManagerProcess(nodes, tmp_path_factory.mktemp("manager"), uid=uid))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(scope="module")
def shared(nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorManagerProcess]:
    one = ActorManagerProcess(nodes, tmp_path_factory.mktemp("manager"))
    yield one
    one.close()


@pytest.fixture
def manager(shared: ActorManagerProcess) -> Iterator[ActorManagerProcess]:
    """The one that all tests of a file use, which each leaves empty."""
    yield shared
    shared.clear()


@pytest.fixture
def ray_names(nodes: RayNodes) -> Callable[[], set[str]]:
    """Names of all living actors and placement groups, asked in a process of its own."""

    def names() -> set[str]:
        script = Path(__file__).parent / "print_names.py"
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(sys.path)}
        printed = subprocess.run([sys.executable, str(script), nodes.address], env=environment, stdout=subprocess.PIPE, check=True)
        return set(json.loads(printed.stdout.splitlines()[-1]))

    return names
