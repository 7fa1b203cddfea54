"""A descendant that outlives its process and might hold the write end of its pipe: the death is seen all the same."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_replica_api import FakeApi, serve
from launched_engine import Launched
from monitor_process import MonitorProcess

DEADLINE_SECONDS = 60.0


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    with serve(tmp_path) as api:
        yield api


@pytest.mark.parametrize("how", ["escape", "c-escape"])
def test_a_death_whose_pipe_a_living_grandchild_has_inherited_is_told(api: FakeApi, tmp_path: Path, how: str) -> None:
    """Python's own forks close it; of one made in C, without the hooks, the lock tells, which nobody inherits."""
    where = {"host": "127.0.0.1", "port": api.port, "credentials": api.credentials}
    monitor = MonitorProcess(tmp_path, **where, namespace="here", replica="replica", replica_uid="replica-uid")
    behaviours = {"api-server 0": "cores,bound", "engine-core 0": f"addresses,hello,{how}=600"}
    engine = Launched(tmp_path, behaviours, "--monitor-socket", str(monitor.socket), "--replica-uid", "replica-uid")
    grandchild = 0
    try:
        grandchild = int(engine.until(r"has grandchild (\d+)")[1])
        api.wait_for(lambda api: (api.row() or {}).get("state") == "Serving", timeout_seconds=DEADLINE_SECONDS)
        os.kill(engine.pid("engine core of rank 0"), signal.SIGKILL)
        api.wait_for(lambda api: api.row()["failures"], timeout_seconds=DEADLINE_SECONDS)
        row: dict[str, Any] = api.row() or {}
        assert [(failure["signal"], failure["detectedBy"]) for failure in row["failures"]] == [(9, "Pipe")]
        api.wait_for(lambda api: api.row()["ranks"][0]["incarnation"] == 2, timeout_seconds=DEADLINE_SECONDS)
        # It would have kept the pipe open for ten minutes. Whether it outlives the core is nobody's promise: a launcher that
        # notices before the kernel has given the core's children away kills them with it.
    finally:
        for process in (engine.process, monitor.process):
            process.kill()
            process.wait()
        if grandchild:
            with contextlib.suppress(ProcessLookupError):
                os.kill(grandchild, signal.SIGKILL)
        shutil.rmtree(engine.temporary)
