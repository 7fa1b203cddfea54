"""The real monitor process beside a fake API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_replica_api import FakeApi, serve
from monitor_process import MonitorProcess


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    with serve(tmp_path) as api:
        yield api


@pytest.fixture
def monitor(tmp_path: Path, api: FakeApi) -> Iterator[Callable[[], MonitorProcess]]:
    """Starts a monitor of pod-0 beside the fake API; all of them share one socket path."""
    started: list[MonitorProcess] = []

    def start(*, replica_uid: str = "replica-uid", leads: bool = False, log_format: str = "text") -> MonitorProcess:
        where = {"host": "127.0.0.1", "port": api.port, "credentials": api.credentials}
        of_replica = {"namespace": "here", "replica": "replica", "replica_uid": replica_uid}
        started.append(MonitorProcess(tmp_path, **where, **of_replica, leads=leads, log_format=log_format))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
