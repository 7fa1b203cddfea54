"""Bad specs and bad worlds on a real API server: a condition that says what to do, nothing lost, no traceback, no hot loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kubernetes import client as kubernetes_client
from kubernetes.client.exceptions import ApiException
from stage import GROUP, VERSION, Stage

from kubectl_plugin import Plugin
from localkube import cluster

pytestmark = pytest.mark.api

TEMPLATE_REFUSED = {"spec": {"shareProcessNamespace": True}}
TEMPLATE_BROKEN = {"spec": {"tolerations": [{"operator": "Sometimes"}]}}
TEMPLATE_UNRESTRICTED = {"spec": {"volumes": [{"name": "node", "hostPath": {"path": "/"}}]}}


def ready_pods(stage: Stage) -> set[str]:
    return {pod["metadata"]["uid"] for pod in stage.pods() if "deletionTimestamp" not in pod["metadata"]}


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"template": TEMPLATE_REFUSED}, "TemplateInvalid", "spec.template.spec.shareProcessNamespace"),
        ({"template": TEMPLATE_BROKEN}, "PodRejected", "tolerations"),
    ],
    ids=["refused template", "broken template"],
)
def test_a_spec_that_cannot_work_stalls_and_makes_nothing(stage: Stage, spec: dict[str, Any], reason: str, words: str) -> None:
    stage.operator()
    stage.apply(**spec)
    stalled = stage.until_condition("Stalled", "True", reason)
    assert words in stalled["message"]
    assert stage.condition("Reconciling") is None
    assert stage.condition("Ready") is not None
    assert stage.replicas() == []
    assert stage.pods() == []


def test_an_engine_that_is_nested_deeper_than_python_cares_to_read_holds_no_other_one_up(
    stage: Stage, api_cluster: cluster.Cluster, tmp_path: Path
) -> None:
    levels = 1200
    template = '{"spec": {"affinity": ' + '{"a": ' * levels + "{}" + "}" * levels + "}}"
    head = f'"apiVersion": "{GROUP}/{VERSION}", "kind": "InferenceEngine", "metadata": {{"name": "deep"}}'
    manifest = tmp_path / "deep.json"
    manifest.write_text(f'{{{head}, "spec": {{"executor": "Simulated", "template": {template}}}}}')
    where = f"/apis/{GROUP}/{VERSION}/namespaces/{stage.namespace}/inferenceengines"
    api_cluster.kubectl("create", f"--raw={where}", f"--filename={manifest}")
    stage.operator()
    stage.apply("other")
    stage.until_condition("Ready", "True", name="other")
    said = "jsonpath={.status.conditions[?(@.type=='Stalled')].message}"
    stage.until(
        lambda: "nested deeper" in api_cluster.kubectl("get", "ie", "deep", f"--namespace={stage.namespace}", f"--output={said}"),
        saying="and it is refused in words",
    )


@pytest.mark.parametrize("template", [TEMPLATE_REFUSED, TEMPLATE_BROKEN], ids=["refused", "broken"])
def test_a_template_that_breaks_the_pod_does_not_end_what_runs(stage: Stage, template: dict[str, Any]) -> None:
    stage.operator()
    stage.apply(replicas=1)
    stage.until_condition("Ready", "True")
    before = ready_pods(stage)
    stage.patch(spec={"template": template})
    stage.until_condition("Stalled", "True")
    assert ready_pods(stage) == before
    stage.until_condition("Available", "True")
    stage.patch(spec={"template": None})
    stage.until_condition("Ready", "True")
    assert ready_pods(stage) == before, "the old spec again: nothing is replaced"


def test_a_folder_of_the_node_is_refused_by_a_namespace_of_restricted_pods(stage: Stage) -> None:
    stage.operator()
    stage.apply(template=TEMPLATE_UNRESTRICTED)
    told = stage.until_condition("Ready", "False", "Forbidden")
    assert 'violates PodSecurity "restricted:latest": restricted volume types' in told["message"]
    assert stage.pods() == []
    stage.patch(spec={"template": None})
    stage.until_condition("Ready", "True")


def test_a_missing_volume_claim_is_told_and_found_when_it_comes(stage: Stage) -> None:
    stage.operator()
    stage.apply(model={"uri": "pvc://models/m.gguf"})
    told = stage.until_condition("Ready", "False", "ClaimNotFound")
    assert "'models'" in told["message"]
    assert stage.pods() == []
    claim = {"metadata": {"name": "models"}, "spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1"}}}}
    kubernetes_client.CoreV1Api(stage.api).create_namespaced_persistent_volume_claim(stage.namespace, claim)
    stage.until_condition("Ready", "True")


def test_a_quota_is_told_and_gone_on_from_when_it_is_raised(stage: Stage, plugin: Plugin) -> None:
    core = kubernetes_client.CoreV1Api(stage.api)
    core.create_namespaced_resource_quota(stage.namespace, {"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}})
    stage.until(lambda: core.read_namespaced_resource_quota("q", stage.namespace).status.hard, saying="the quota is in force")
    stage.operator()
    stage.apply(replicas=2)
    told = stage.until_condition("Ready", "False", "QuotaExceeded")
    assert "raise the quota" in told["message"]
    answer = plugin.why("one")
    assert "exceeded quota: q, requested: pods=1" in answer
    assert "-> Raise the quota, or lower spec.resources or spec.replicas" in answer
    stage.until_condition("Available", "True")
    refused = [event for event in stage.audit() if event["verb"] == "create" and event["responseStatus"]["code"] == 403]
    assert len(refused) < 12, "it waits longer each time"
    core.patch_namespaced_resource_quota("q", stage.namespace, {"spec": {"hard": {"pods": "9"}}})
    stage.until_condition("Ready", "True")


def test_what_admission_refuses_is_told_in_its_words_and_gone_on_from_when_it_is_allowed(stage: Stage, plugin: Plugin) -> None:
    core = kubernetes_client.CoreV1Api(stage.api)
    volumes = {"volumes": [{"name": "models", "hostPath": {"path": "/models"}}]}
    level = "pod-security.kubernetes.io/enforce"

    def is_in_force() -> bool:
        pod = {"metadata": {"name": "tried"}, "spec": volumes | {"containers": [{"name": "engine", "image": "e"}]}}
        try:
            core.create_namespaced_pod(stage.namespace, pod, dry_run="All")
        except ApiException as error:
            return "PodSecurity" in error.body
        return False

    core.patch_namespace(stage.namespace, {"metadata": {"labels": {level: "baseline"}}})
    stage.until(is_in_force, saying="paths of the node are refused")
    stage.operator()
    stage.apply(template={"spec": volumes})
    stage.until_condition("Ready", "False", "Forbidden")
    answer = plugin.why("one")
    assert 'violates PodSecurity "baseline:latest": hostPath volumes (volume "models")' in answer
    assert "-> Let the admission policy or webhook that the message names allow it" in answer
    core.patch_namespace(stage.namespace, {"metadata": {"labels": {level: None}}})
    stage.patch(metadata={"annotations": {"wake": "up"}})  # by itself it waits longer each time
    stage.until_condition("Ready", "True")


@pytest.mark.parametrize(
    ("status", "reason", "step"),
    [
        ({"containerStatuses": [("engine", "ErrImagePull")]}, "ImageNotAvailable", "Correct the image's name and tag"),
        ({"initContainerStatuses": [("monitor", "ErrImageNeverPull")]}, "ImageNotAvailable", "Correct the image's name and tag"),
        ({"containerStatuses": [("engine", "CreateContainerConfigError")]}, "SecretNotFound", "Create the secret with that key"),
    ],
    ids=["engine image", "monitor image", "secret"],
)
def test_a_container_that_cannot_start_is_told(
    stage: Stage, plugin: Plugin, status: dict[str, Any], reason: str, step: str
) -> None:
    stage.kubelet.fate = lambda _: "hold"
    stage.operator()
    stage.apply()
    pod = stage.until(stage.pods, saying="a pod")[0]["metadata"]["name"]
    kind, [(name, waiting)] = next(iter(status.items()))
    entry = {
        "name": name,
        "image": "registry/x:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": waiting, "message": 'secret "hf" not found'}},
    }
    stage.kubelet._status(pod, **{kind: [entry]})
    told = stage.until_condition("Ready", "False", reason)
    assert "check its name" in told["message"] or "'hf'" in told["message"]
    answer = plugin.why("one")
    assert told["message"] in answer
    assert f"-> {step}" in answer
    assert stage.condition("Stalled") is None


def test_an_unschedulable_pod_is_told_in_the_schedulers_words(stage: Stage) -> None:
    stage.kubelet.fate = lambda _: "hold"
    stage.operator()
    stage.apply(resources={"limits": {"nvidia.com/gpu": 64}})
    pod = stage.until(stage.pods, saying="a pod")[0]["metadata"]["name"]
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    stage.kubelet._status(
        pod, conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}]
    )
    assert words in stage.until_condition("Ready", "False", "Unschedulable")["message"]


def test_a_service_of_somebody_else_is_left_alone(stage: Stage) -> None:
    core = kubernetes_client.CoreV1Api(stage.api)
    mine = {"metadata": {"name": "one"}, "spec": {"ports": [{"port": 1234}], "selector": {"mine": "true"}}}
    core.create_namespaced_service(stage.namespace, mine)
    stage.operator()
    stage.apply()
    told = stage.until_condition("Ready", "False", "NameTaken")
    assert "Service one" in told["message"]
    assert core.read_namespaced_service("one", stage.namespace).spec.selector == {"mine": "true"}
    core.delete_namespaced_service("one", stage.namespace)
    stage.until_condition("Ready", "True")


def test_what_a_foreign_hand_changed_is_put_right(stage: Stage) -> None:
    stage.operator()
    stage.apply()
    stage.until_condition("Ready", "True")
    core = kubernetes_client.CoreV1Api(stage.api)
    core.patch_namespaced_service("one", stage.namespace, {"spec": {"selector": {"enginehouse.dev/engine": "other"}}})
    kubernetes_client.RbacAuthorizationV1Api(stage.api).delete_namespaced_role(
        stage.replicas()[0]["metadata"]["name"], stage.namespace
    )
    stage.patch(metadata={"annotations": {"wake": "up"}})
    stage.until(
        lambda: core.read_namespaced_service("one", stage.namespace).spec.selector["enginehouse.dev/engine"] == "one",
        saying="the selector is as wanted",
    )
    stage.until(lambda: stage.picture()["roles"] == ["0/1"], saying="the role is there again")
