"""Stories of engines on a real API server: what people, nodes and deaths do to one, told to the end.

Each story ends settled, with every object born once. The node is scripted: what a real one does is for tests/cluster.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from scripted_kubelet import failure, now
from stage import GROUP, VERSION, Raw, Stage

pytestmark = pytest.mark.api

SPREAD: Raw = {"executor": "Simulated", "parallelism": {"data": 2, "workersPerMember": 1}}
"""A leader with rank 0's worker, and a member with rank 1's."""


def serving(stage: Stage, **spec: Any) -> None:
    stage.operator()
    stage.apply(**spec)
    stage.until_condition("Ready", "True", "AllReplicasServe")


def die(stage: Stage, pod: Raw) -> None:
    """The only rank of this pod, as its monitor tells it."""
    stage.kubelet.tell(pod, state="Failed", rank_0="Dead", failures=[failure(rank=0, detectedTime=now())])


def places(raws: list[Raw]) -> list[tuple[int, int]]:
    return [(raw["spec"]["index"], raw["spec"]["epoch"]) for raw in raws]


def live(stage: Stage) -> list[Raw]:
    return [raw for raw in stage.replicas() if "end" not in raw["spec"]]


def ended(stage: Stage) -> list[Raw]:
    return [raw for raw in stage.replicas() if "end" in raw["spec"]]


def settled(stage: Stage, replicas: int, pods: int, born_again: str | None = None) -> None:
    """Nothing of the past is left. ``born_again``: a replica that somebody deleted, with all that was known of it."""

    def is_whole() -> bool:
        status = stage.engine()["status"]
        counts = (status["readyReplicas"], status["replicas"], len(stage.replicas()), len(stage.pods()))
        return counts == (replicas, replicas, replicas, pods) and not stage.garbage()

    stage.until_settled(is_whole)
    assert {name: times for name, times in stage.births().items() if times != 1} == (
        {f"enginereplicas/{born_again}": 2} if born_again else {}
    )


@pytest.mark.parametrize("role", ["leader", "worker"])
def test_an_evicted_member_drains_with_its_replica_and_costs_nothing(stage: Stage, role: str) -> None:
    serving(stage, **SPREAD, replicas=2)
    pods = stage.pods()
    victim = next(pod for pod in pods if pod["metadata"]["labels"]["enginehouse.dev/role"] == role)
    stage.kubelet.lingers = lambda _: True
    stage.until(lambda: stage.evict(victim), saying="the budget of disruptions allows one replica")
    (end,) = stage.until(lambda: [raw["spec"]["end"] for raw in ended(stage)], saying="the replica is asked to end")
    assert (end["reason"], end["failure"]["class"]) == ("MemberRemoved", "Removed")
    assert datetime.fromisoformat(end["deadline"]) > datetime.fromisoformat(now()), "it drains"
    stage.until(lambda: len(live(stage)) == 2, saying="a successor")
    stage.until_condition("Ready", "True")
    stage.until(lambda: len(stage.pods()) == len(pods) * 3 // 2, saying="the successor serves while the evicted replica drains")
    stage.kubelet.lingers = lambda _: False
    settled(stage, replicas=2, pods=len(pods))
    status = stage.engine()["status"]
    assert (status["restarts"], "lastFailure" in status) == (0, False)
    assert sorted(epoch for _, epoch in places(stage.replicas())) == [1, 2]


def test_a_spec_change_during_a_delay_starts_at_once_and_forgets_the_failures(stage: Stage) -> None:
    serving(stage)
    for epoch in (1, 2):
        stage.until(lambda epoch=epoch: places(live(stage)) == [(0, epoch)], saying=f"epoch {epoch}")
        stage.until_condition("Ready", "True")
        die(stage, next(pod for pod in stage.pods() if "deletionTimestamp" not in pod["metadata"]))
        stage.until(lambda epoch=epoch: (0, epoch) in places(ended(stage)), saying=f"epoch {epoch} ends")
    stage.until_condition("Ready", "False", "RestartDelayed")
    stage.until(lambda: not stage.pods(), saying="its pod is gone")
    assert live(stage) == []
    (last,) = stage.replicas()
    due = datetime.fromisoformat(last["spec"]["end"]["failure"]["detectedTime"]) + timedelta(seconds=10)
    stage.patch(spec={"context": {"maxLength": 4096}})
    stage.until_condition("Ready", "True")
    (successor,) = live(stage)
    assert datetime.fromisoformat(successor["metadata"]["creationTimestamp"]) < due
    assert "failures" not in successor["spec"]
    assert stage.engine()["status"]["lastFailure"]["replica"] == last["metadata"]["name"], "what happened stays readable"
    settled(stage, replicas=1, pods=1)


def test_three_one_and_three_again_also_while_the_ended_ones_drain(stage: Stage) -> None:
    serving(stage, replicas=3)
    stage.kubelet.lingers = lambda _: True
    stage.patch(spec={"replicas": 1})
    stage.until(lambda: places(ended(stage)) == [(1, 1), (2, 1)], saying="the two highest end")
    stage.until_condition("Ready", "True")
    stage.patch(spec={"replicas": 3})
    stage.until_condition("Ready", "True")
    assert places(live(stage)) == [(0, 1), (1, 2), (2, 2)]
    assert len(stage.pods()) == 5, "they serve while the ended ones drain"
    stage.kubelet.lingers = lambda _: False
    settled(stage, replicas=3, pods=3)
    stage.patch(spec={"replicas": 1})
    stage.until(lambda: len(stage.pods()) == 1, saying="one is left")
    assert {raw["spec"]["end"]["reason"] for raw in ended(stage)} == {"ScaleDown"}
    stage.patch(spec={"replicas": 3})
    stage.until_condition("Ready", "True")
    settled(stage, replicas=3, pods=3)
    assert places(stage.replicas()) == [(0, 1), (1, 3), (2, 3)]
    assert stage.engine()["status"]["restarts"] == 0


def test_suspended_and_resumed_also_while_it_drains(stage: Stage) -> None:
    serving(stage, **SPREAD)
    stage.kubelet.lingers = lambda _: True
    stage.patch(spec={"suspend": True})
    stage.until(lambda: all("deletionTimestamp" in pod["metadata"] for pod in stage.pods()), saying="all members drain")
    stage.until_condition("Ready", "True", "Suspended")
    stage.patch(spec={"suspend": False})
    stage.until_condition("Ready", "True", "AllReplicasServe")
    assert places(live(stage)) == [(0, 2)]
    stage.until(lambda: len(stage.pods()) == 4, saying="both members of each")
    stage.kubelet.lingers = lambda _: False
    settled(stage, replicas=1, pods=2)
    stage.patch(spec={"suspend": True})
    stage.until(lambda: not stage.pods(), saying="no pod is left")
    stage.patch(spec={"suspend": False})
    stage.until_condition("Ready", "True", "AllReplicasServe")
    settled(stage, replicas=1, pods=2)
    assert places(stage.replicas()) == [(0, 3)]


@pytest.mark.parametrize(("grace", "kind"), [(30, "Removed"), (0, "Lost")], ids=["asked", "forced"])
def test_a_pod_deleted_by_hand_while_the_operator_is_down(stage: Stage, grace: int, kind: str) -> None:
    operator = stage.operator()
    stage.apply(**SPREAD)
    stage.until_condition("Ready", "True")
    # The leader tells all ranks; a member without a row has never been there.
    stage.until(lambda: len(stage.replicas()[0]["status"]["members"]) == 2, saying="each member has its row")
    operator.kill()
    victim = next(pod for pod in stage.pods() if pod["metadata"]["labels"]["enginehouse.dev/role"] == "worker")["metadata"]
    stage._core.delete_namespaced_pod(victim["name"], stage.namespace, grace_period_seconds=grace)
    stage.until(lambda: len(stage.pods()) == 1, saying="it is gone")
    stage.operator()
    stage.until(lambda: places(live(stage)) == [(0, 2)], saying="a successor")
    settled(stage, replicas=1, pods=2)
    (successor,) = stage.replicas()
    assert [record["class"] for record in successor["spec"]["failures"]] == [kind]
    assert stage.engine()["status"]["restarts"] == 0, "the budget is for what the engine does"


def test_a_replica_deleted_by_hand_while_the_operator_is_down_is_made_again_with_its_members(stage: Stage) -> None:
    operator = stage.operator()
    stage.apply(**SPREAD)
    stage.until_condition("Ready", "True")
    operator.kill()
    before = {pod["metadata"]["uid"] for pod in stage.pods()}
    delete_replica(stage, stage.replicas()[0])
    stage.operator()
    stage.until(lambda: before.isdisjoint(pod["metadata"]["uid"] for pod in stage.pods()), saying="its pods are gone")
    stage.until_condition("Ready", "True")
    stage.until_settled(lambda: len(stage.pods()) == 2 and not stage.garbage())
    assert places(stage.replicas()) == [(0, 1)], "nothing is known any more of the one before"


def delete_replica(stage: Stage, raw: Raw) -> None:
    stage._objects.delete_namespaced_custom_object(
        GROUP, VERSION, stage.namespace, "enginereplicas", raw["metadata"]["name"], propagation_policy="Background"
    )


def has_ended(stage: Stage) -> bool:
    (only,) = stage.replicas()
    return [found["status"] for found in only["status"]["conditions"] if found["type"] == "Ended"] == ["True"]


@pytest.mark.parametrize("way_out", ["spec", "budget", "annotation", "deletion"])
def test_the_last_failed_replica_stays_readable_without_pods_until_a_person_lets_its_successor_come(
    stage: Stage, way_out: str
) -> None:
    operator = stage.operator()
    stage.apply(restart={"maxRestarts": 0})
    stage.until_condition("Ready", "True")
    (pod,) = stage.pods()
    die(stage, pod)
    stalled = stage.until_condition("Stalled", "True", "RestartBudgetSpent")
    assert "signal 9: killed" in stalled["message"]
    stage.until(lambda: not stage.pods(), saying="no pod is left")
    operator.kill()
    stage.operator()
    stage.until(lambda: stage.log.count("works on") == 2, saying="the next one leads")
    stage.until_settled(lambda: has_ended(stage) and stage.condition("Stalled") is not None)
    (dead,) = stage.replicas()
    assert (dead["spec"]["end"]["reason"], dead["spec"]["end"]["failure"]["member"]) == ("MemberFailed", pod["metadata"]["name"])
    assert [row["name"] for row in dead["status"]["members"]] == [pod["metadata"]["name"]]
    match way_out:
        case "spec":
            stage.patch(spec={"context": {"maxLength": 4096}})
        case "budget":
            stage.patch(spec={"restart": {"maxRestarts": 1}})
        case "annotation":
            stage.patch(metadata={"annotations": {"enginehouse.dev/resume-after": now()}})
        case "deletion":
            delete_replica(stage, dead)
    stage.until_condition("Ready", "True")
    assert stage.condition("Stalled") is None
    settled(stage, replicas=1, pods=1, born_again=dead["metadata"]["name"] if way_out == "deletion" else None)
    assert stage.engine()["status"]["restarts"] == (1 if way_out == "budget" else 0), "only a larger budget forgives nothing"
    assert stage.engine()["status"]["lastFailure"]["member"] == pod["metadata"]["name"]
    if way_out == "annotation":
        die(stage, stage.pods()[0])
        stage.until_condition("Stalled", "True", "RestartBudgetSpent")
