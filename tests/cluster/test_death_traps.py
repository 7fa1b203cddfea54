"""Deaths at the worst moments, on a real kubelet: two at once, and while monitor, operator or API server are away.

Those that disturb nobody else are played side by side; the operator and the API server come back however a test ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from cluster_history import History, Object, rows
from killed_engine import TWO_MEMBERS, KilledEngine, simulated
from living_processes import PodProcess
from localkube.installation import SYSTEM_NAMESPACE, Installation

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

AT_ONCE = 4


def kill(*processes: PodProcess) -> None:
    for process in processes:
        process.signal(signal.SIGKILL)


def serving(engine: KilledEngine, **spec: Any) -> None:
    engine.apply(simulated(engine.name, restart={"maxRestarts": 3}, **spec))
    engine.until_ready()
    engine.look()


def until_back(engine: KilledEngine, *, ranks: list[tuple[int, int, str]]) -> None:
    engine.until(f"ranks {ranks}", lambda: engine.rank_words() == ranks and engine.settled())


def deaths(engine: KilledEngine) -> list[tuple[str, int | None, int, int]]:
    """Role, rank, incarnation and signal of all that the rows told."""
    told = [(one["role"], one.get("rank"), one["incarnation"], one["signal"]) for one in engine.failures()]
    return sorted(told, key=lambda one: (one[0], one[1] or 0, one[2]))


def row_of(engine: KilledEngine) -> Object:
    (row,) = (row for replica in engine.history.now("ier", engine.name) for row in rows(replica))
    return row


def two_ranks_die_at_once_and_both_come_back_in_their_pod(engine: KilledEngine) -> None:
    serving(engine, parallelism={"data": 2})
    kill(engine.the("engine-core", rank=0), engine.the("engine-core", rank=1))
    until_back(engine, ranks=[(0, 2, "Serving"), (1, 2, "Serving")])
    assert deaths(engine) == [("engine-core", 0, 1, 9), ("engine-core", 1, 1, 9)]
    # The rows say it first.
    engine.until("both restarts are counted", lambda: engine.engine["status"]["restarts"] == 2)
    assert engine.ended_replicas() == {}
    assert engine.answer() == 200


def a_core_and_its_api_server_die_at_once_and_both_come_back_in_their_pod(engine: KilledEngine) -> None:
    serving(engine)
    kill(engine.the("engine-core"), engine.the("api-server"))
    engine.until_here("the API server is back", lambda: engine.find("api-server", incarnation=2))
    until_back(engine, ranks=[(0, 2, "Serving")])
    assert deaths(engine) == [("api-server", None, 1, 9), ("engine-core", 0, 1, 9)]
    assert engine.ended_replicas() == {}
    assert engine.answer() == 200


def two_members_lose_a_process_each_and_one_replica_ends_for_it(engine: KilledEngine) -> None:
    serving(engine, **TWO_MEMBERS)
    kill(engine.the("engine-core"), engine.the("worker"))
    engine.until("a successor alone", lambda: engine.has_succeeded(pods=2))
    (end,) = engine.ended_replicas().values()
    assert end["failure"]["role"] in ("engine-core", "worker")
    assert end["failure"]["signal"] == signal.SIGKILL
    assert engine.engine["status"]["restarts"] == 1
    assert engine.answer() == 200


def a_monitor_dies_and_nothing_but_it_is_started_again(engine: KilledEngine) -> None:
    serving(engine)
    pod, row = engine.pods()[0], row_of(engine)
    others = {process for process in engine.processes(pod) if process.role not in ("monitor", "")}
    old = engine.the("monitor")
    kill(old)
    engine.until_here("another monitor", lambda: (found := engine.find("monitor")) and found != old)
    engine.until("it is told to run", lambda: _restarts(engine.pods()[0]) == 1)
    assert {process for process in engine.processes(pod) if process.role not in ("monitor", "")} == others
    assert row_of(engine) == row
    kill(engine.the("engine-core"))
    until_back(engine, ranks=[(0, 2, "Serving")])
    assert deaths(engine) == [("engine-core", 0, 1, 9)]
    assert engine.ended_replicas() == {}


def a_monitor_and_a_core_die_together_and_the_next_monitor_tells_of_it(engine: KilledEngine) -> None:
    serving(engine)
    kill(engine.the("monitor"), engine.the("engine-core"))
    until_back(engine, ranks=[(0, 2, "Serving")])
    assert deaths(engine) == [("engine-core", 0, 1, 9)]
    assert engine.ended_replicas() == {}
    assert engine.answer() == 200


def a_launcher_dies_and_all_of_its_pod_with_it(engine: KilledEngine) -> None:
    serving(engine)
    kill(engine.the("launcher"))
    engine.until("a successor alone", lambda: engine.has_succeeded(pods=1))
    (end,) = engine.ended_replicas().values()
    assert (end["failure"]["role"], end["failure"]["signal"]) == ("launcher", signal.SIGKILL)
    assert engine.engine["status"]["restarts"] == 1
    assert engine.answer() == 200
    engine.until_here("nothing of it is left", lambda: not engine.leftovers())


TRAPS: list[Callable[[KilledEngine], None]] = [
    two_ranks_die_at_once_and_both_come_back_in_their_pod,
    a_core_and_its_api_server_die_at_once_and_both_come_back_in_their_pod,
    two_members_lose_a_process_each_and_one_replica_ends_for_it,
    a_monitor_dies_and_nothing_but_it_is_started_again,
    a_monitor_and_a_core_die_together_and_the_next_monitor_tells_of_it,
    a_launcher_dies_and_all_of_its_pod_with_it,
]


@pytest.fixture(scope="module")
def sprung(request: pytest.FixtureRequest, installation: Installation, history: History) -> Iterator[dict[Any, Future[str]]]:
    """The traps that this run has tests for, under way; each answers with its story."""
    chosen = [
        item.callspec.params["trap"] for item in request.session.items if item.path == request.path and "trap" in item.fixturenames
    ]

    def play(number: int, trap: Callable[[KilledEngine], None]) -> str:
        engine = KilledEngine(installation, history, f"trap-{number}")
        try:
            trap(engine)
            return engine.story
        finally:
            engine.delete()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {trap: pool.submit(play, number, trap) for number, trap in enumerate(chosen)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_trap(trap: Callable[[KilledEngine], None], sprung: dict[Any, Future[str]]) -> None:
    print(sprung[trap].result())


@pytest.fixture
def engine(installation: Installation, history: History, request: pytest.FixtureRequest) -> Iterator[KilledEngine]:
    made = KilledEngine(installation, history, f"alone-{abs(hash(request.node.name)) % 1000}")
    yield made
    made.delete()


@contextmanager
def without_operator(installation: Installation) -> Iterator[None]:
    def scale(replicas: int) -> None:
        installation.kubectl("scale", "deployment", "--all", f"--replicas={replicas}", namespace=SYSTEM_NAMESPACE)

    scale(0)
    try:
        gone = ("wait", "--for=delete", "pods", "--selector=app.kubernetes.io/name=enginehouse", "--timeout=60s")
        installation.kubectl(*gone, namespace=SYSTEM_NAMESPACE, timeout_seconds=90)
        yield
    finally:
        scale(1)
        installation.kubectl("rollout", "status", "deployment", namespace=SYSTEM_NAMESPACE, timeout_seconds=120)


@contextmanager
def without_api_server(installation: Installation) -> Iterator[None]:
    """It takes connections and says nothing: worse than one that is gone."""
    (pid,) = (pid for pid, name in installation.cluster.processes().items() if name == "kube-apiserver")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_death_without_an_operator_is_in_the_row_and_is_answered_once_when_it_is_back(
    installation: Installation, engine: KilledEngine
) -> None:
    serving(engine)
    with without_operator(installation):
        kill(engine.the("engine-core"))
        engine.until("the rank is back", lambda: engine.rank_words() == [(0, 2, "Serving")])
        kill(engine.the("engine-core"))
        # The state comes first, the cause when the dead process is reaped.
        both = [("engine-core", 0, 1, 9), ("engine-core", 0, 2, 9)]
        engine.until("the end is in the row", lambda: (row_of(engine)["state"], deaths(engine)) == ("Failed", both))
        assert engine.ended_replicas() == {}
    engine.until("a successor alone", lambda: engine.has_succeeded(pods=1))
    (end,) = engine.ended_replicas().values()
    assert (end["failure"]["incarnation"], end["failure"]["signal"]) == (2, signal.SIGKILL)
    assert engine.engine["status"]["restarts"] == 2
    assert engine.answer() == 200


def test_a_death_without_an_api_server_is_answered_by_the_pod_at_once_and_the_row_follows(
    installation: Installation, engine: KilledEngine
) -> None:
    serving(engine)
    leader = engine.pods()[0]
    with without_api_server(installation):
        core = engine.the("engine-core")
        kill(core)
        engine.until_here("the rank is back", lambda: _serves(engine, leader, incarnation=2))
        back = datetime.now(UTC)
    until_back(engine, ranks=[(0, 2, "Serving")])
    (failure,) = engine.failures()
    assert (failure["role"], failure["signal"]) == ("engine-core", signal.SIGKILL)
    assert datetime.fromisoformat(failure["detectedTime"]) < back
    assert engine.ended_replicas() == {}


def _serves(engine: KilledEngine, pod: Object, *, incarnation: int) -> bool:
    here = {(process.role, process.incarnation) for process in engine.processes(pod)}
    return ("engine-core", incarnation) in here and engine.answer() == 200


def _restarts(pod: Object) -> int:
    """Of its monitor, as far as the kubelet has told."""
    return sum(one["restartCount"] for one in pod["status"]["initContainerStatuses"] if one["state"].get("running"))
