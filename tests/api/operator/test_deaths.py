"""Deaths on a real API server: whoever reports one, and how often, it is one end, one successor and one failure that counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scripted_kubelet import failure, now
from stage import Raw, Stage

pytestmark = pytest.mark.api

SPREAD: Raw = {"executor": "Simulated", "parallelism": {"data": 2, "workersPerMember": 1}}
"""A leader with rank 0's worker, and a member with rank 1's."""
TWO_RANKS: Raw = {"executor": "Simulated", "parallelism": {"data": 2}}


def by_role(stage: Stage, role: str) -> Raw:
    (pod,) = (
        pod
        for pod in stage.pods()
        if pod["metadata"]["labels"]["enginehouse.dev/role"] == role and "deletionTimestamp" not in pod["metadata"]
    )
    return pod


def places(stage: Stage) -> list[tuple[int, int, bool]]:
    """Index, epoch, and whether it was asked to end."""
    return [(raw["spec"]["index"], raw["spec"]["epoch"], "end" in raw["spec"]) for raw in stage.replicas()]


def counted(stage: Stage) -> list[tuple[int | None, int | None]]:
    """Rank and incarnation of what the living replica has to carry."""
    (live,) = (raw for raw in stage.replicas() if "end" not in raw["spec"])
    return [(record.get("rank"), record.get("incarnation")) for record in live["spec"].get("failures", ())]


def until_the_successor_serves(stage: Stage) -> None:
    """By its own status: the engine's may be of the time before the death."""

    def serves() -> bool:
        return any(
            (found["type"], found["status"]) == ("Ready", "True")
            for raw in stage.replicas()
            if raw["spec"]["epoch"] == 2
            for found in raw.get("status", {}).get("conditions", ())
        )

    stage.until(serves, saying="the successor serves")


def answered_once(stage: Stage, pods: int) -> None:
    """One end, one successor that serves, nothing left of what died."""
    until_the_successor_serves(stage)
    stage.until(lambda: places(stage) == [(0, 2, False)], saying="the successor alone is left")
    stage.until_condition("Ready", "True")
    stage.until_settled(lambda: len(stage.pods()) == pods)
    assert stage.writes().count("patch enginereplicas/") == 1, "spec.end was written once"
    assert set(stage.births().values()) == {1}
    told = [event["message"] for event in stage.list("/api/v1/namespaces/{namespace}/events") if " ends: " in event["message"]]
    assert len(told) <= 1, "an operator that is killed may not come to say it"


@pytest.mark.parametrize(("spec", "rank"), [(TWO_RANKS, 1), ({}, 0)], ids=["one of two ranks", "the only rank"])
def test_a_rank_that_dies_twice_while_the_operator_is_down(stage: Stage, spec: Raw, rank: int) -> None:
    operator = stage.operator()
    stage.apply(**spec)
    stage.until_condition("Ready", "True")
    operator.kill()
    (pod,) = stage.pods()
    deaths = [failure(rank=rank, incarnation=life, pid=16 + life, detectedTime=now()) for life in (1, 2)]
    stage.kubelet.tell(pod, **{f"rank_{rank}": "Restarting"}, incarnation=2, failures=deaths[:1])
    stage.kubelet.tell(pod, state="Serving" if spec else "Failed", **{f"rank_{rank}": "Dead"}, incarnation=2, failures=deaths)
    stage.operator()
    answered_once(stage, pods=1)
    assert counted(stage) == [(rank, 1), (rank, 2)]
    status = stage.engine()["status"]
    assert (status["restarts"], status["lastFailure"]["incarnation"], status["lastFailure"]["pid"]) == (2, 2, 18)


Report = Callable[[Stage, Raw, Raw], None]


def leader_says(stage: Stage, leader: Raw, worker: Raw) -> None:
    """The engine core died of its lost worker, and is the same rank's same life."""
    stage.kubelet.tell(leader, rank_1="Dead", failures=[failure(pid=20)])


def worker_says(stage: Stage, leader: Raw, worker: Raw) -> None:
    stage.kubelet.tell(worker, state="Failed", rank_1="Dead", failures=[failure(role="worker")])


def kubelet_says(stage: Stage, leader: Raw, worker: Raw) -> None:
    if worker["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in stage.pods()}:
        return  # a pod that is over goes at once when it is deleted
    stage.kubelet.end(
        worker, exit_code=137, words={"class": "Signal", "role": "worker", "rank": 1, "incarnation": 1, "pid": 17, "signal": 9}
    )


ORDERS: tuple[tuple[Report, ...], ...] = (
    (leader_says, worker_says, kubelet_says),
    (kubelet_says, worker_says, leader_says),
    (worker_says, kubelet_says, leader_says),
)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: ", ".join(said.__name__ for said in order))
def test_three_reports_of_one_death_are_one_end_in_whatever_order_they_come(stage: Stage, order: tuple[Report, ...]) -> None:
    operator = stage.operator()
    stage.apply(**SPREAD)
    stage.until_condition("Ready", "True")
    leader, worker = by_role(stage, "leader"), by_role(stage, "worker")
    stage.kubelet.lingers = lambda _: True
    order[0](stage, leader, worker)
    stage.until(lambda: (0, 1, True) in places(stage), saying="the replica ends with the first report")
    operator.kill()
    for said in order[1:]:
        said(stage, leader, worker)
    stage.operator()
    until_the_successor_serves(stage)
    for said in order:
        said(stage, leader, worker)  # once more, of a replica that has a successor
    stage.kubelet.lingers = lambda _: False
    answered_once(stage, pods=2)
    assert counted(stage) == [(1, 1)]
    assert stage.engine()["status"]["restarts"] == 1


def test_a_late_word_about_the_life_before_ends_nothing(stage: Stage) -> None:
    stage.operator()
    stage.apply(**SPREAD)
    stage.until_condition("Ready", "True")
    leader, worker = by_role(stage, "leader"), by_role(stage, "worker")
    for pod in (leader, worker):
        stage.kubelet.tell(pod, incarnation=2, failures=[failure()])
    stage.kubelet.tell(worker, incarnation=1, rank_1="Dead", failures=[failure()])  # the order was lost on the way
    stage.until_settled(lambda: stage.engine()["status"]["restarts"] == 1)
    assert places(stage) == [(0, 1, False)]
    stage.until_condition("Ready", "True")


@pytest.mark.parametrize("dies", [True, False], ids=["a death", "a planned exit"])
def test_a_death_in_a_planned_drain_counts_and_a_planned_exit_does_not(stage: Stage, dies: bool) -> None:
    stage.operator()
    stage.apply()
    stage.until_condition("Ready", "True")
    stage.kubelet.lingers = lambda _: True
    (pod,) = stage.pods()
    stage.patch(spec={"suspend": True})
    stage.until(lambda: "deletionTimestamp" in stage.pods()[0]["metadata"], saying="it drains")
    if dies:
        stage.kubelet.tell(pod, state="Failed", rank_0="Dead", failures=[failure(rank=0, detectedTime=now())])
        stage.until(lambda: stage.engine()["status"].get("lastFailure", {}).get("signal") == 9, saying="it is told")
    else:  # it took longer than its grace period: the kubelet kills the launcher, whose monitor cannot see by whom
        killed = failure(role="launcher", rank=None, incarnation=None, signal=None, detectedTime=now()) | {"class": "Unknown"}
        stage.kubelet.tell(pod, state="Failed", rank_0="Dead", failures=[killed])
        stage.kubelet.end(pod, exit_code=137, words={})
    stage.kubelet.lingers = lambda _: False
    stage.until(lambda: not stage.pods(), saying="no pod is left")
    stage.patch(spec={"suspend": False})
    stage.until_condition("Ready", "True", "AllReplicasServe")
    assert counted(stage) == ([(0, 1)] if dies else [])
    status = stage.engine()["status"]
    assert (status["restarts"], "lastFailure" in status) == ((1, True) if dies else (0, False))


def test_a_second_rank_that_dies_in_the_drain_after_the_first_is_told_and_ends_nothing_more(stage: Stage) -> None:
    stage.operator()
    stage.apply(**TWO_RANKS)
    stage.until_condition("Ready", "True")
    stage.kubelet.lingers = lambda _: True
    (pod,) = stage.pods()
    first = failure(detectedTime=now())
    stage.kubelet.tell(pod, rank_1="Dead", failures=[first])
    stage.until(lambda: (0, 1, True) in places(stage), saying="it is asked to end")
    second = failure(rank=0, signal=11, pid=18, detectedTime=now())
    stage.kubelet.tell(pod, state="Failed", rank_0="Dead", rank_1="Dead", failures=[first, second])
    stage.kubelet.lingers = lambda _: False
    answered_once(stage, pods=1)
    assert counted(stage) == [(1, 1)]
