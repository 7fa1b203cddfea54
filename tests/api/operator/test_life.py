"""The life of an engine on a real API server: up, down, changed, suspended, dead, deleted; and what its status says meanwhile."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from stage import Stage

pytestmark = pytest.mark.api


def ready(stage: Stage, count: int) -> bool:
    status = stage.engine().get("status", {})
    return status.get("readyReplicas") == count == status.get("replicas")


def test_an_engine_becomes_ready_and_publishes_the_smallest_context_length(stage: Stage) -> None:
    known: dict[str, int] = {}

    def fate(pod: Any) -> str:
        name = pod["metadata"]["name"]
        known[name] = known.get(name) or (4096 if known else 8192)
        stage.kubelet.context_length = known[name]
        return "serve"

    stage.kubelet.fate = fate
    stage.operator()
    stage.apply(replicas=2)
    stage.until_condition("Ready", "True", "AllReplicasServe")
    status = stage.engine()["status"]
    smallest = min(known, key=lambda name: known[name])
    assert status["maxContextLength"] == 4096
    assert smallest.startswith(status["contextLimitedBy"]["replica"])
    assert status["endpoint"] == f"http://one.{stage.namespace}.svc"
    assert {found["type"]: found["status"] for found in status["conditions"]} == {
        "Ready": "True",
        "Available": "True",
        "Progressing": "False",
        "ContextFit": "True",
    }
    generation = stage.engine()["metadata"]["generation"]
    assert {found["observedGeneration"] for found in status["conditions"]} == {generation} == {status["observedGeneration"]}


def test_a_settled_world_is_written_no_more(stage: Stage) -> None:
    stage.operator()
    stage.apply(replicas=2)
    stage.until_settled(lambda: ready(stage, 2))
    before = len(stage.writes())
    # A pod's heartbeat-like change wakes the operator: it looks, and has nothing to write.
    for pod in stage.pods():
        stage.kubelet._status(pod["metadata"]["name"], message="a word that changes nothing")
    stage.until_settled(lambda: ready(stage, 2))
    assert stage.writes()[before:] == []


def test_a_changed_spec_replaces_all_replicas_and_keeps_enough_serving(stage: Stage) -> None:
    stage.operator()
    stage.apply(replicas=3)
    stage.until_condition("Ready", "True")
    first = {raw["metadata"]["uid"] for raw in stage.replicas()}
    lowest = [3]

    def watch() -> bool:
        status = stage.engine()["status"]
        lowest.append(status["readyReplicas"])
        ready_now = next(found for found in status["conditions"] if found["type"] == "Ready")
        return bool(ready_now["status"] == "True" and ready_now["observedGeneration"] == stage.engine()["metadata"]["generation"])

    stage.patch(spec={"context": {"maxLength": 4096}})
    stage.until(watch, saying="the rollout ends")
    stage.until_settled(lambda: ready(stage, 3))
    assert min(lowest) >= 2
    assert first.isdisjoint(raw["metadata"]["uid"] for raw in stage.replicas())
    assert [raw["spec"]["epoch"] for raw in stage.replicas()] == [2, 2, 2]


def test_suspend_and_zero_replicas_are_ready_with_that_reason(stage: Stage) -> None:
    stage.operator()
    stage.apply(replicas=1)
    stage.until_condition("Ready", "True", "AllReplicasServe")
    stage.patch(spec={"suspend": True})
    stage.until_condition("Ready", "True", "Suspended")
    stage.until(lambda: not stage.pods(), saying="no pod is left")
    stage.patch(spec={"suspend": False, "replicas": 0})
    stage.until_condition("Ready", "True", "ZeroReplicas")
    stage.patch(spec={"replicas": 1})
    stage.until_condition("Ready", "True", "AllReplicasServe")
    assert [(raw["spec"]["epoch"], "end" in raw["spec"]) for raw in stage.replicas() if "end" not in raw["spec"]] == [(2, False)]


def test_a_death_is_published_and_answered_by_a_successor(stage: Stage) -> None:
    stage.operator()
    stage.apply(replicas=2)
    stage.until_condition("Ready", "True")
    victim = stage.pods()[0]["metadata"]
    stage.kubelet.fate = lambda pod: "die" if pod["metadata"]["uid"] == victim["uid"] else "serve"
    stage.until(lambda: stage.engine()["status"].get("restarts") == 1, saying="a restart")
    stage.until_condition("Ready", "True")
    status = stage.engine()["status"]
    failure = status["lastFailure"]
    assert (failure["class"], failure["signal"], failure["role"], failure["rank"]) == ("Signal", 9, "engine-core", 0)
    assert failure["member"] == victim["name"]
    assert datetime.datetime.fromisoformat(failure["detectedTime"]).tzinfo is not None
    stage.until(lambda: len(stage.replicas()) == 2, saying="the ended replica is deleted once its index has a successor")
    assert sorted(raw["spec"]["epoch"] for raw in stage.replicas()) == [1, 2]


def test_a_context_that_does_not_fit_stops_readably_and_a_changed_spec_goes_on(stage: Stage) -> None:
    stage.kubelet.fate = lambda _: "refuse"
    stage.operator()
    stage.apply(context={"minLength": 2048})
    stalled = stage.until_condition("Stalled", "True", "ContextTooSmall")
    assert "only 100 tokens fit" in stalled["message"]
    assert stage.until_condition("ContextFit", "False", "ContextTooSmall")
    stage.until(lambda: not stage.pods(), saying="the failed pod is removed")
    assert len(stage.replicas()) == 1, "no crash loop"
    stage.kubelet.fate = lambda _: "serve"
    stage.patch(spec={"context": {"minLength": 64}})
    stage.until_condition("Ready", "True")
    stage.until_condition("ContextFit", "True")
    assert stage.condition("Stalled") is None


def test_the_budget_spent_stalls_until_the_annotation_is_set(stage: Stage) -> None:
    stage.kubelet.fate = lambda _: "die"
    stage.operator()
    stage.apply(restart={"maxRestarts": 1})
    stage.until_condition("Stalled", "True", "RestartBudgetSpent")
    assert [raw["spec"]["epoch"] for raw in stage.replicas()][-1] == 2
    stage.kubelet.fate = lambda _: "serve"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    stage.patch(metadata={"annotations": {"enginehouse.dev/resume-after": now}})
    stage.until_condition("Ready", "True")


def test_a_deleted_engine_takes_everything_with_it_also_without_an_operator(stage: Stage) -> None:
    operator = stage.operator()
    stage.apply(replicas=2)
    stage.until_condition("Ready", "True")
    operator.kill()
    stage.delete()
    stage.until(lambda: stage._everything() == [] or all(
        raw["metadata"]["name"] == "kube-root-ca.crt" for raw in stage._everything()
    ), saying="nothing is left")  # fmt: skip
