"""What Kubernetes takes away: evictions within the budget of disruptions, and pods given up with their node."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client as kubernetes_client
from scripted_node import ScriptedNode
from stage import Raw, Stage

from kubectl_plugin import Plugin

pytestmark = pytest.mark.api

SPREAD: Raw = {"executor": "Simulated", "parallelism": {"data": 2, "workersPerMember": 1}}
"""Two members each."""
BUDGETS = "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"


def budget(stage: Stage) -> Raw:
    (found,) = stage.list(BUDGETS)
    return found


def allows(stage: Stage, pods: int) -> Callable[[], bool]:
    """The controller has counted the present pods against the present budget."""

    def counted() -> bool:
        found = budget(stage)
        status: dict[str, Any] = found.get("status", {})
        is_present = status.get("observedGeneration") == found["metadata"]["generation"]
        return is_present and status.get("disruptionsAllowed") == pods

    return counted


def of_replica(stage: Stage, number: int) -> list[Raw]:
    """Pods of the live replica of this index, the leader first."""
    live = [raw["metadata"]["name"] for raw in stage.replicas() if raw["spec"]["index"] == number and "end" not in raw["spec"]]
    found = [pod for pod in stage.pods() if pod["metadata"]["labels"]["enginehouse.dev/replica"] in live]
    return sorted(found, key=lambda pod: pod["metadata"]["labels"]["enginehouse.dev/ordinal"])


@pytest.mark.parametrize("shape", [{}, SPREAD], ids=["one member", "two members"])
def test_evictions_take_no_more_replicas_than_may_be_unavailable(stage: Stage, shape: Raw) -> None:
    stage.operator()
    stage.apply(**shape, replicas=2)
    stage.until_condition("Ready", "True")
    stage.until(allows(stage, 1), saying="one pod may be evicted")
    first = {pod["metadata"]["uid"] for pod in stage.pods()}
    stage.kubelet.fate = lambda pod: "serve" if pod["metadata"]["uid"] in first else "hold"
    stage.kubelet.lingers = lambda _: True
    assert stage.evict(of_replica(stage, 0)[-1])
    assert not stage.evict(of_replica(stage, 1)[-1]), "the other replica is the last that serves"
    stage.until(lambda: any("end" in raw["spec"] for raw in stage.replicas()), saying="the replica ends")
    (ended,) = (raw["spec"]["end"] for raw in stage.replicas() if "end" in raw["spec"])
    assert (ended["reason"], ended["failure"]["class"]) == ("MemberRemoved", "Removed")
    stage.kubelet.lingers = lambda _: False
    stage.until(lambda: len(of_replica(stage, 0)) == len(first) // 2, saying="its successor has its pods")
    assert not stage.evict(of_replica(stage, 1)[0]), "the successor does not serve yet"
    assert stage.evict(of_replica(stage, 0)[0]), "what does not serve keeps no node from being drained"
    stage.kubelet.fate = lambda _: "serve"
    stage.until_condition("Ready", "True")
    stage.until(allows(stage, 1), saying="one pod may be evicted again")
    assert stage.engine()["status"].get("restarts") == 0, "it costs no budget"
    assert stage.evict(of_replica(stage, 1)[-1])


def test_the_budget_of_disruptions_follows_the_spec_and_is_put_right(stage: Stage) -> None:
    stage.operator()
    stage.apply(replicas=3)
    stage.until(lambda: stage.list(BUDGETS) and budget(stage)["spec"]["minAvailable"] == 2, saying="two of three")
    stage.patch(spec={"rollout": {"maxUnavailable": 2}})
    stage.until(lambda: budget(stage)["spec"]["minAvailable"] == 1, saying="one of three")
    stage.patch(spec={"suspend": True})
    stage.until(lambda: budget(stage)["spec"]["minAvailable"] == 0, saying="nothing is held up")
    stage.patch(spec={"suspend": False})
    stage.until(lambda: budget(stage)["spec"]["minAvailable"] == 1, saying="one of three again")
    policy = kubernetes_client.PolicyV1Api(stage.api)
    policy.patch_namespaced_pod_disruption_budget("one-members", stage.namespace, {"spec": {"minAvailable": 0}})
    stage.patch(metadata={"annotations": {"note": "read it again"}})  # no watch tells of budgets
    stage.until(lambda: budget(stage)["spec"]["minAvailable"] == 1, saying="somebody's change is put right with the next read")


def test_a_node_that_says_nothing_is_given_up_and_its_replica_starts_elsewhere(stage: Stage, plugin: Plugin) -> None:
    """The cluster of these tests calls a node silent after 12 s; then the pod's own 10 s begin."""
    elsewhere = stage.kubelet.node
    with ScriptedNode(stage.api, f"lost-{uuid.uuid4().hex[:8]}") as node:
        stage.kubelet.node = node.name
        stage.operator()
        stage.apply(restart={"maxRestarts": 0})
        stage.until_condition("Ready", "True")
        (lost,) = stage.pods()
        stage.kubelet.node = elsewhere
        stage.kubelet.lost_nodes.add(node.name)
        stage.kubelet.fate = lambda _: "hold"
        node.fall_silent()
        # Kubernetes gives up one node in ten seconds; others of the same cluster may be before it.
        stage.until(lambda: any(raw["spec"]["epoch"] == 2 for raw in stage.replicas()), saying="a successor", seconds=120)
        stage.until_condition("Ready", "False")
        answer = plugin.why("one")
        assert "NodeLost" in answer
        assert "-> Nothing, the successor starts on another node; bring the node back, or delete it." in answer
        stage.kubelet.fate = lambda _: "serve"
        stage.until_condition("Ready", "True")
        old, new = stage.replicas()
        assert (old["spec"]["end"]["reason"], old["spec"]["end"]["failure"]["class"]) == ("MemberLost", "NodeLost")
        kinds = [(found["class"], found["replica"]) for found in new["spec"]["failures"]]
        assert kinds == [("NodeLost", old["metadata"]["name"])], "it delays the next one, and costs no budget"
        assert stage.engine()["status"]["restarts"] == 0
        places = {pod["metadata"]["uid"]: pod["spec"]["nodeName"] for pod in stage.pods()}
        assert places.pop(lost["metadata"]["uid"]) == node.name, "it stays until the node is back, or gone"
        assert set(places.values()) == {elsewhere}
