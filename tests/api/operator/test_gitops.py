"""Engines that are delivered from Git: the spec stays the user's alone, and every tool can tell when it is done."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage import Stage

import gitops_tools
from localkube import cluster

pytestmark = pytest.mark.api

ENGINE = {
    "apiVersion": "enginehouse.dev/v1alpha1",
    "kind": "InferenceEngine",
    "metadata": {"name": "one"},
    "spec": {"model": {"uri": "file:///models/m"}, "replicas": 2, "drain": {"timeoutSeconds": 1}},
}


def kstatus(stage: Stage) -> str:
    (verdict,) = gitops_tools.kstatus([stage.engine()])
    return verdict.status


def writers(stage: Stage) -> set[tuple[str, str | None]]:
    return {(entry["manager"], entry.get("subresource")) for entry in stage.engine()["metadata"]["managedFields"]}


def test_an_engine_that_no_operator_has_seen_is_in_progress(stage: Stage) -> None:
    stage.apply()
    assert kstatus(stage) == "InProgress"
    operator = stage.operator()
    stage.until_condition("Ready", "True")
    assert kstatus(stage) == "Current"
    operator.kill()
    stage.patch(spec={"replicas": 2})
    assert kstatus(stage) == "InProgress"
    stage.operator()
    stage.until(lambda: kstatus(stage) == "Current", saying="the change is done")
    stage.patch(spec={"template": {"spec": {"hostPID": True}}})
    stage.until(lambda: kstatus(stage) == "Failed", saying="what was refused has failed")


@pytest.mark.parametrize(
    "how", [("--server-side", "--field-manager=gitops"), ("--field-manager=gitops",)], ids=["server", "client"]
)
def test_kubectl_diff_is_clean_after_settling_and_the_spec_is_the_users(
    stage: Stage, api_cluster: cluster.Cluster, tmp_path: Path, how: tuple[str, ...]
) -> None:
    manifest = tmp_path / "engine.yaml"

    def apply(**spec: Any) -> None:
        manifest.write_text(yaml.safe_dump(ENGINE | {"spec": ENGINE["spec"] | spec}))
        api_cluster.kubectl("-n", stage.namespace, "apply", *how, "-f", str(manifest))
        api_cluster.kubectl("-n", stage.namespace, "wait", "--for=condition=Ready", "--timeout=45s", "ie/one")

    def assert_untouched() -> None:
        stage.until_settled(lambda: True)
        # Its exit status is 1 when something differs, which kubectl() raises.
        assert api_cluster.kubectl("-n", stage.namespace, "diff", *how, "-f", str(manifest)) == ""
        assert writers(stage) == {("gitops", None), ("enginehouse-operator", "status")}

    stage.operator()
    apply()
    assert_untouched()
    apply(context={"maxLength": 4096})
    assert {raw["spec"]["epoch"] for raw in stage.replicas() if "end" not in raw["spec"]} == {2}, "wait came after the rollout"
    stage.kubelet.end(stage.pods()[0], exit_code=137, words={"class": "Signal", "message": "killed", "signal": 9})
    stage.until(lambda: stage.engine()["status"].get("restarts") == 1, saying="a restart")
    apply(context={"maxLength": 4096})
    assert_untouched()
    apply(suspend=True)
    assert_untouched()


def test_labels_and_gates_for_a_queue_reach_every_pod_and_suspend_frees_them(stage: Stage) -> None:
    label, gate = {"kueue.x-k8s.io/queue-name": "inference"}, {"name": "example.com/quota"}

    def gated() -> list[Any]:
        return [pod for pod in stage.pods() if pod["spec"].get("schedulingGates") == [gate]]

    def admit() -> None:
        stage.kubelet.fate = lambda _: "serve"
        for pod in gated():
            stage._core.patch_namespaced_pod(
                pod["metadata"]["name"], stage.namespace, [{"op": "remove", "path": "/spec/schedulingGates"}]
            )

    stage.kubelet.fate = lambda _: "hold"
    stage.operator()
    template = {"metadata": {"labels": label}, "spec": {"schedulingGates": [gate]}}
    stage.apply(template=template, executor="Simulated", parallelism={"data": 2, "workersPerMember": 1})
    told = stage.until_condition("Ready", "False", "Unschedulable")
    assert "held back by its scheduling gates" in told["message"]
    assert len(stage.until(lambda: len(gated()) == 2 and gated(), saying="both members wait")) == 2
    assert all(label.items() <= pod["metadata"]["labels"].items() for pod in gated())
    admit()
    stage.until_condition("Ready", "True")
    stage.until_settled(lambda: True)
    births = stage.births()
    assert [count for name, count in births.items() if name.startswith("pods/")] == [1, 1], "who was admitted is not replaced"
    stage.kubelet.fate = lambda _: "hold"
    stage.patch(spec={"suspend": True})
    stage.until_condition("Ready", "True", "Suspended")
    stage.until(lambda: not stage.pods(), saying="no pod is left")
    stage.patch(spec={"suspend": False})
    stage.until(lambda: len(gated()) == 2, saying="the next replica waits in the queue again")
    assert Counter(name.split("/")[0] for name in stage.births() - births) == {"enginereplicas": 1, "pods": 2}
