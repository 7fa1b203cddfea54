"""Replicas of several members and ranks on a real API server: birth, scale, loss, and what is published of each rank."""

from __future__ import annotations

import pytest
from scripted_kubelet import failure
from stage import Raw, Stage

from enginehouse_operator import observe
from kubectl_plugin import Plugin

pytestmark = pytest.mark.api

SPREAD: Raw = {"executor": "Simulated", "parallelism": {"data": 2, "workersPerMember": 1}}
"""A leader with rank 0's worker, and a member with rank 1's."""
TWO_RANKS: Raw = {"executor": "Simulated", "parallelism": {"data": 2}}


def by_role(stage: Stage, role: str) -> list[Raw]:
    """Pods, by replica."""
    found = [pod for pod in stage.pods() if pod["metadata"]["labels"]["enginehouse.dev/role"] == role]
    return sorted(found, key=lambda pod: pod["metadata"]["labels"]["enginehouse.dev/replica"])


def uids(pods: list[Raw]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def ended(stage: Stage) -> list[Raw]:
    return [raw["spec"]["end"] for raw in stage.replicas() if "end" in raw["spec"]]


def test_members_are_born_once_and_only_leaders_serve(stage: Stage) -> None:
    stage.operator()
    stage.apply(**SPREAD, replicas=2)
    stage.until_condition("Ready", "True", "AllReplicasServe")
    leaders, workers = by_role(stage, "leader"), by_role(stage, "worker")
    assert (len(leaders), len(workers)) == (2, 2)
    assert all(pod["metadata"]["labels"].get("enginehouse.dev/serving") == "true" for pod in leaders)
    assert not any("enginehouse.dev/serving" in pod["metadata"]["labels"] for pod in workers)
    for leader, worker in zip(leaders, workers, strict=True):
        host = f"{leader['spec']['hostname']}.{leader['spec']['subdomain']}.{stage.namespace}.svc"
        assert f"--leader={host}" in worker["spec"]["containers"][0]["args"]
    (service,) = (raw for raw in stage.list("/api/v1/namespaces/{namespace}/services") if raw["spec"]["clusterIP"] == "None")
    assert service["metadata"]["name"] == leaders[0]["spec"]["subdomain"]
    stage.patch(spec={"replicas": 1})
    stage.until(lambda: len(stage.pods()) == 2, saying="one replica is left")
    stage.until_condition("Ready", "True", "AllReplicasServe")
    stage.patch(spec={"suspend": True})
    stage.until(lambda: not stage.pods(), saying="no member is left")
    assert set(stage.births().values()) == {1}


def test_a_member_that_is_deleted_before_it_reported_is_made_again(stage: Stage) -> None:
    stage.kubelet.fate = lambda pod: "hold" if pod["metadata"]["labels"]["enginehouse.dev/role"] == "worker" else "serve"
    stage.operator()
    stage.apply(**SPREAD)
    (first,) = stage.until(lambda: by_role(stage, "worker"), saying="the worker is there")
    stage.kubelet.delete(first)
    again = stage.until(lambda: uids(by_role(stage, "worker")) - uids([first]), saying="it is made again")
    stage.kubelet.fate = lambda _: "serve"
    stage.until_condition("Ready", "True")
    assert uids(by_role(stage, "worker")) == again
    assert [raw["spec"]["epoch"] for raw in stage.replicas()] == [1]


def test_a_worker_that_dies_ends_its_replica_by_a_drain_and_all_members_are_made_anew(stage: Stage) -> None:
    stage.operator()
    stage.apply(**SPREAD, drain={"timeoutSeconds": 7})
    stage.until_condition("Ready", "True")
    before = stage.pods()
    (victim,) = uids(by_role(stage, "worker"))
    stage.kubelet.fate = lambda pod: "die" if pod["metadata"]["uid"] == victim else "serve"
    stage.until(lambda: stage.engine()["status"].get("restarts") == 1, saying="a successor")
    stage.until_condition("Ready", "True")
    stage.until(lambda: len(stage.pods()) == 2, saying="the members of the ended replica are gone")
    assert uids(stage.pods()).isdisjoint(uids(before))
    assert [raw["spec"]["epoch"] for raw in stage.replicas()] == [2]
    assert stage.engine()["status"]["lastFailure"]["class"] == "Signal"


def test_a_rank_that_restarts_is_named_and_ends_nothing_and_a_dead_one_is_replaced(stage: Stage) -> None:
    stage.operator()
    stage.apply(**TWO_RANKS)
    stage.until_condition("Ready", "True")
    (pod,) = stage.pods()
    stage.kubelet.tell(pod, rank_1="Restarting", incarnation=2, failures=[failure()])
    restarting = stage.until_condition("Ready", "False", "RankRestarting")
    assert "rank 1 of" in restarting["message"]
    assert "signal 9: killed" in restarting["message"]
    stage.until_condition("Available", "True", "SomeReplicasServe")
    assert stage.engine()["status"]["lastFailure"]["member"] == pod["metadata"]["name"]
    stage.kubelet.tell(pod, incarnation=2, failures=[failure()])
    stage.until_condition("Ready", "True")
    assert ended(stage) == []
    stage.kubelet.tell(pod, rank_1="Dead", incarnation=2, failures=[failure(), failure(incarnation=2, pid=18)])
    stage.until(lambda: stage.engine()["status"].get("restarts") == 2, saying="a successor")
    stage.until_condition("Ready", "True")
    assert uids(stage.pods()).isdisjoint(uids([pod]))
    events = stage.list("/api/v1/namespaces/{namespace}/events")
    ours = [found for found in events if found["reportingComponent"] == "enginehouse-operator"]
    assert [found["reason"] for found in ours if found["type"] == "Warning"] == ["RankDead"]


def test_a_replica_with_a_dead_rank_serves_on_when_the_budget_is_spent(stage: Stage, plugin: Plugin) -> None:
    stage.operator()
    stage.apply(**TWO_RANKS, restart={"maxRestarts": 0})
    stage.until_condition("Ready", "True")
    (pod,) = stage.pods()
    stage.kubelet.tell(pod, rank_1="Dead", failures=[failure()])
    stage.until_condition("Stalled", "True", "RestartBudgetSpent")
    stage.until_condition("Available", "True")
    answer = plugin.why("one")
    assert answer.startswith("one is not Ready, and will not be without you. RestartBudgetSpent")
    assert "rank 1 of" in answer
    assert "-> Remove the cause of the failures, then say so, or change the spec: $ kubectl annotate" in answer
    assert (uids(stage.pods()), ended(stage)) == (uids([pod]), [])
    (replica,) = observe.replicas(engine_uid=stage.engine()["metadata"]["uid"], replica_objects=stage.replicas(), pods=stage.pods())
    assert replica.rows[0].written is not None, "causes that are never told are waited for from then on"
    stage.patch(spec={"restart": {"maxRestarts": 1}})
    stage.until_condition("Ready", "True")
    stage.until(lambda: [raw["spec"]["epoch"] for raw in stage.replicas()] == [2], saying="the successor alone is left")


def test_the_smallest_rank_limits_the_engine_and_its_removal_raises_the_value(stage: Stage) -> None:
    stage.operator()
    stage.apply(**TWO_RANKS, replicas=2)
    stage.until_condition("Ready", "True")
    small = next(raw["metadata"]["name"] for raw in stage.replicas() if raw["spec"]["index"] == 1)
    (pod,) = (found for found in stage.pods() if found["metadata"]["labels"]["enginehouse.dev/replica"] == small)

    def published() -> tuple[int, Raw]:
        status = stage.engine()["status"]
        return status["maxContextLength"], status["contextLimitedBy"]

    stage.kubelet.tell(pod, lengths={1: 2048})
    stage.until(lambda: published() == (2048, {"replica": small, "rank": 1}), saying="the smallest is published")
    stage.patch(spec={"replicas": 1})
    stage.until_condition("Ready", "True")
    length, who = stage.until(lambda: published() if published()[0] != 2048 else None, saying="the value rises")
    assert (length, who["replica"] != small) == (stage.kubelet.context_length, True)


def test_a_rollout_that_does_not_fit_stops_at_the_first_and_the_others_serve_on(stage: Stage) -> None:
    stage.operator()
    stage.apply(**TWO_RANKS, replicas=2)
    stage.until_condition("Ready", "True")
    stage.kubelet.fate = lambda pod: "refuse" if "--min-context-length=4096" in pod["spec"]["containers"][0]["args"] else "serve"
    stage.patch(spec={"context": {"minLength": 4096}})
    stage.until_condition("ContextFit", "False", "ContextTooSmall")
    stalled = stage.until_condition("Stalled", "True", "ContextTooSmall")
    assert "only 100 tokens fit" in stalled["message"]
    stage.until_condition("Available", "True")
    stage.until_settled(lambda: len(stage.pods()) == 1)
    assert [(raw["spec"]["index"], raw["spec"]["epoch"]) for raw in stage.replicas()] == [(0, 1), (1, 2)], "no crash loop"


@pytest.mark.parametrize("told", [False, True])
def test_a_leader_behind_which_nothing_lives_leaves_service_by_the_first_write_of_the_next_pass(stage: Stage, told: bool) -> None:
    stage.operator()
    stage.apply(**TWO_RANKS, restart={"maxRestarts": 0})
    stage.until_condition("Ready", "True")
    stage.until_settled(lambda: True)
    (pod,) = stage.pods()
    before = len(stage.writes())
    stage.kubelet.tell(pod, rank_0="Dead", rank_1="Dead", failures=[failure(), failure(rank=0, pid=18)] if told else [])
    stage.until_condition("Available", "False")
    stage.until_settled(lambda: True)
    writes = stage.writes()[before:]
    assert writes[0] == "patch pods/", "before the end, the statuses and whatever else there is to do"
    assert bool(ended(stage)) == told
    if not told:
        (there,) = stage.pods()
        assert "enginehouse.dev/serving" not in there["metadata"]["labels"]
        assert writes.count("patch pods/") == 1
