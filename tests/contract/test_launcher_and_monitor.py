"""Engine and monitor as one pod: real launcher, API server, engine core and monitor; only the Kubernetes API is a fake one."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enginehouse_operator import observe
from fake_replica_api import FakeApi, serve
from monitor_process import MonitorProcess

DEADLINE_SECONDS = 60.0


class Pod:
    """Its two containers are two processes here."""

    def __init__(self, folder: Path, api: FakeApi, more_flags: tuple[str, ...] = ()) -> None:
        self._folder, self.api = folder, api
        self.log = folder / "engine.log"
        self.monitor = self.start_monitor()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        flags = ["--executor=Simulated", "--port=0", f"--monitor-socket={self.monitor.socket}", "--replica-uid=replica-uid"]
        flags += more_flags
        with self.log.open("wb") as log:
            self.engine = subprocess.Popen(
                [sys.executable, "-m", "enginehouse_engine", *flags], env=environment, stderr=log, stdout=subprocess.PIPE, text=True
            )

    def start_monitor(self) -> MonitorProcess:
        self.monitor = MonitorProcess(
            self._folder,
            host="127.0.0.1",
            port=self.api.port,
            credentials=self.api.credentials,
            namespace="here",
            replica="replica",
            replica_uid="replica-uid",
        )
        return self.monitor

    def serve(self) -> Pod:
        self.api.wait_for(lambda api: (api.row() or {}).get("state") == "Serving", timeout_seconds=DEADLINE_SECONDS)
        return self

    def pid(self, name: str) -> int:
        """Of the newest of this name."""
        found = re.findall(rf"started {name}, pid (\d+)", self.log.read_text())
        assert found, self.log.read_text()
        return int(found[-1])

    def failures(self) -> list[tuple[Any, ...]]:
        row = self.api.row() or {}
        return [(failure["role"], failure["class"], failure.get("signal"), failure["detectedBy"]) for failure in row["failures"]]

    def ranks_become(self, wanted: list[tuple[int, str]]) -> dict[str, Any]:
        """The row, once its ranks have these incarnations and states."""

        def found(api: FakeApi) -> bool:
            return [(rank["incarnation"], rank["state"]) for rank in (api.row() or {})["ranks"]] == wanted

        self.api.wait_for(found, timeout_seconds=DEADLINE_SECONDS)
        row: dict[str, Any] = self.api.row()
        return row

    def close(self) -> None:
        for process in (self.engine, self.monitor.process):
            process.kill()
            process.communicate()


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Callable[..., Pod]]:
    pods: list[Pod] = []
    with serve(tmp_path) as api:

        def start(*more_flags: str, members: tuple[dict[str, Any], ...] = ()) -> Pod:
            api.members = list(members)
            pods.append(Pod(tmp_path, api, more_flags))
            return pods[-1]

        yield start
        for one in pods:
            one.close()


def test_the_fitted_context_length_reaches_the_row_and_the_operator_reads_it(pod: Any) -> None:
    one = pod().serve()
    row = msgspec.convert(one.api.row(), observe.Row)
    (rank,) = row.ranks
    assert (rank.rank, rank.incarnation, rank.state) == (0, 1, "Serving")
    assert f"context length {rank.max_context_length}\n" in one.engine.stdout.readline()
    assert one.api.row()["ranks"][0]["kvBlocks"] > 0


@pytest.mark.parametrize(("name", "role"), [("engine core of rank 0", "engine-core"), ("API server 0", "api-server")])
def test_a_killed_process_is_in_the_row_with_its_cause_seen_by_its_pipe(pod: Any, name: str, role: str) -> None:
    one = pod().serve()
    os.kill(one.pid(name), signal.SIGKILL)
    one.api.wait_for(lambda api: api.row()["failures"])
    assert one.failures() == [(role, "Signal", 9, "Pipe")]
    row = msgspec.convert(one.api.row(), observe.Row)
    assert [failure.message for failure in row.failures] == [f"{name} was killed by SIGKILL"]
    assert one.api.row()["failures"][0]["evidence"].startswith(f"last lines of {name}:\n")
    assert row.state == "Serving", "it is started again in place"


def test_a_rank_that_comes_back_is_a_new_incarnation_in_the_row_and_dies_for_good_the_second_time(pod: Any) -> None:
    one = pod("--data-parallel=2").serve()
    os.kill(one.pid("engine core of rank 1"), signal.SIGKILL)
    assert one.ranks_become([(1, "Serving"), (2, "Serving")])["state"] == "Serving"
    os.kill(one.pid("engine core of rank 1"), signal.SIGKILL)
    assert one.ranks_become([(1, "Serving"), (2, "Dead")])["state"] == "Serving"
    one.api.wait_for(lambda api: [failure["incarnation"] for failure in api.row()["failures"]] == [1, 2])
    os.kill(one.pid("engine core of rank 0"), signal.SIGKILL)
    one.ranks_become([(2, "Serving"), (2, "Dead")])
    os.kill(one.pid("engine core of rank 0"), signal.SIGKILL)
    assert one.engine.wait(DEADLINE_SECONDS) == 137
    assert one.ranks_become([(2, "Dead"), (2, "Dead")])["state"] == "Failed"


def test_a_monitor_that_restarts_reports_the_next_death(pod: Any) -> None:
    one = pod().serve()
    writes = one.api.writes()
    one.monitor.process.kill()
    one.monitor.process.wait()
    one.start_monitor()
    one.api.wait_for(lambda api: api.reads() == 2)
    os.kill(one.pid("engine core of rank 0"), signal.SIGKILL)
    one.api.wait_for(lambda api: api.row()["failures"])
    assert one.failures()[0][:3] == ("engine-core", "Signal", 9)
    assert one.api.writes() > writes


def test_an_orderly_end_leaves_an_ended_row_without_failures(pod: Any) -> None:
    one = pod().serve()
    one.engine.terminate()
    assert one.engine.wait(DEADLINE_SECONDS) == 0
    assert one.monitor.terminate() == 0
    assert (one.api.row()["state"], one.failures()) == ("Ended", [])


def test_the_launchers_death_is_reported_and_takes_its_processes_with_it(pod: Any) -> None:
    one = pod().serve()
    children = [os.pidfd_open(one.pid("API server 0")), os.pidfd_open(one.pid("engine core of rank 0"))]
    one.engine.kill()
    one.api.wait_for(lambda api: api.row()["failures"])
    assert one.failures() == [("launcher", "Unknown", None, "Pipe")]
    for child in children:
        assert select.select([child], [], [], DEADLINE_SECONDS)[0]
        os.close(child)


def test_a_model_that_is_not_there_fails_the_row_and_leaves_the_cause_to_the_container(pod: Any) -> None:
    """No process was started, so none has failed: the operator waits for the launcher's last words."""
    one = pod("--executor=InProcess", "--model=file:///nowhere")
    assert one.engine.wait(DEADLINE_SECONDS) == 78
    one.api.wait_for(lambda api: api.row()["state"] == "Failed")
    assert one.monitor.terminate() == 0
    assert (one.api.row()["state"], one.failures()) == ("Failed", [])
    assert "ModelNotFound" in one.log.read_text()


def test_an_engine_whose_row_belongs_to_another_pod_ends_and_never_starts(pod: Any) -> None:
    one = pod(members=[{"name": "pod-0", "uid": "another"}])
    assert one.engine.wait(DEADLINE_SECONDS) == 0
    assert "started" not in one.log.read_text()
    assert one.api.writes() == 0


def test_a_deleted_replica_drains_and_the_signal_that_follows_cuts_nothing(pod: Any) -> None:
    one = pod().serve()
    one.api.change(deleting=True)
    one.api.wait_for(lambda api: api.row()["state"] == "Draining", timeout_seconds=DEADLINE_SECONDS)
    one.engine.terminate()
    assert one.engine.wait(DEADLINE_SECONDS) == 0
    assert "launcher: draining" in one.log.read_text()
    assert one.monitor.terminate() == 0
    assert (one.api.row()["state"], one.failures()) == ("Ended", [])


def test_a_rank_that_died_in_another_pod_ends_this_one_with_the_same_cause(pod: Any) -> None:
    one = pod().serve()
    failure = {
        "role": "worker",
        "rank": 0,
        "incarnation": 1,
        "pid": 70,
        "signal": 11,
        "class": "Signal",
        "message": "worker 1 died",
    }
    dead = {"rank": 0, "incarnation": 1, "state": "Dead"}
    peer = {"name": "pod-1", "uid": "other", "state": "Failed", "ranks": [dead], "failures": [failure]}
    one.api.change(members=[*one.api.members, peer])
    assert one.engine.wait(DEADLINE_SECONDS) == 139
    assert "the engine ends: Signal: worker 1 died" in one.log.read_text()
    assert one.monitor.terminate() == 0
    assert (one.api.row()["state"], one.api.row()["ranks"][0]["state"], one.failures()) == ("Failed", "Dead", [])


def test_a_death_while_the_api_is_away_is_acted_on_at_once_and_told_when_it_is_back(pod: Any) -> None:
    one = pod("--data-parallel=2").serve()
    one.api.failures, one.api.watch_failures = [503] * 100, [503] * 100
    one.api.cut_watches("cut")
    os.kill(one.pid("engine core of rank 1"), signal.SIGKILL)
    again = re.compile(r"started engine core of rank 1, pid \d+, incarnation 2")
    one.api.wait_for(lambda _: again.search(one.log.read_text()), timeout_seconds=DEADLINE_SECONDS)
    assert one.api.row()["failures"] == []
    one.api.failures.clear()
    one.api.watch_failures.clear()
    one.ranks_become([(1, "Serving"), (2, "Serving")])
    assert one.failures() == [("engine-core", "Signal", 9, "Pipe")]


def test_deaths_at_once_are_all_told_each_with_its_cause(pod: Any) -> None:
    one = pod("--data-parallel=3", "--api-servers=2").serve()
    for name, number in (("engine core of rank 0", 9), ("engine core of rank 2", 11), ("API server 1", 6)):
        os.kill(one.pid(name), number)
    one.ranks_become([(2, "Serving"), (1, "Serving"), (2, "Serving")])
    found = [("api-server", "Signal", 6, "Pipe"), ("engine-core", "Signal", 9, "Pipe"), ("engine-core", "Signal", 11, "Pipe")]
    assert sorted(one.failures()) == found


def test_a_monitor_that_restarts_while_the_engine_lives_reports_nothing_and_is_handed_everything_over(pod: Any) -> None:
    one = pod("--data-parallel=2").serve()
    row, writes = one.api.row(), one.api.writes()
    one.monitor.process.kill()
    one.monitor.process.wait()
    again = one.start_monitor()
    pipes = 7  # those of the launcher, the API server and two engine cores, and the hang-ups of three locks
    one.api.wait_for(lambda _: again.held_pipes() == pipes, timeout_seconds=DEADLINE_SECONDS)
    assert (one.api.row(), one.api.writes()) == (row, writes)
    assert one.engine.poll() is None
    os.kill(one.pid("engine core of rank 1"), signal.SIGKILL)
    one.ranks_become([(1, "Serving"), (2, "Serving")])
    assert one.failures() == [("engine-core", "Signal", 9, "Pipe")]
