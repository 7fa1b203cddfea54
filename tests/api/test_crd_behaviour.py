"""What the CRDs are for, on the real API server: apply, defaults, scale, columns, explain, rows of monitors, change of schema.

Not done here: the single rules, see `test_crd_rules.py`.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import crd_schema
from localkube import cluster
from localkube.errors import LocalkubeError

pytestmark = pytest.mark.api

API_VERSION = "enginehouse.dev/v1alpha1"
SMALLEST = """
apiVersion: enginehouse.dev/v1alpha1
kind: InferenceEngine
metadata:
  name: smollm2
spec:
  model:
    uri: pvc://smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""
REPLICA: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "EngineReplica",
    "metadata": {"name": "smollm2-0-abcdefgh"},
    "spec": {"index": 0, "epoch": 1, "engine": {"model": {"uri": "file:///m"}}},
}
ROW: dict[str, Any] = {
    "name": "smollm2-0-abcdefgh-aaaaaaaa",
    "uid": "1c1f2a5e-0000-0000-0000-000000000001",
    "state": "Serving",
    "address": "10.0.0.7",
    "ranks": [{"rank": 0, "incarnation": 1, "state": "Serving", "maxContextLength": 8192, "kvBlocks": 1024}],
    "failures": [
        {
            "role": "api-server", "rank": None, "incarnation": 1, "pid": 12, "exitCode": None, "signal": 9, "class": "Signal",
            "message": "killed by signal 9", "detectedBy": "Pipe", "detectedTime": "2026-01-01T00:00:00.123456Z",
            "reportedTime": "2026-01-01T00:00:00.129Z",
        }
    ],
}  # fmt: skip


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, api_cluster: cluster.Cluster, namespace: str) -> None:
        self.cluster = api_cluster
        self._namespace = namespace

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self._namespace, *arguments, stdin=stdin)

    def json(self, *arguments: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self(*arguments, "-o", "json"))
        return loaded

    def apply_row(self, row: dict[str, Any], *, manager: str | None = None) -> None:
        """What a monitor does: server-side apply of its own row, field manager = pod name."""
        body = {**{key: REPLICA[key] for key in ("apiVersion", "kind", "metadata")}, "status": {"members": [row]}}
        manager = manager or str(row["name"])
        self(
            "apply",
            "--server-side",
            "--subresource=status",
            "--validate=false",
            f"--field-manager={manager}",
            "-f-",
            stdin=json.dumps(body),
        )


@pytest.fixture
def kubectl(api_cluster: cluster.Cluster, namespace: str) -> Kubectl:
    return Kubectl(api_cluster, namespace)


def test_the_smallest_engine_is_filled_with_the_documented_defaults(kubectl: Kubectl) -> None:
    kubectl("apply", "-f-", stdin=SMALLEST)
    assert kubectl.json("get", "ie", "smollm2")["spec"] == {
        "model": {"uri": "pvc://smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "replicas": 1,
        "suspend": False,
        "executor": "Multiprocess",
        "parallelism": {"data": 1, "tensor": 1, "pipeline": 1},
        "apiServers": 1,
        "memory": {"utilizationPercent": 90},
        "context": {"minLength": 1},
        "startup": {"timeoutSeconds": 1800},
        "hang": {"stallSeconds": 120},
        "rollout": {"maxUnavailable": 1},
        "restart": {"maxRestarts": 5, "windowSeconds": 3600},
        "drain": {"timeoutSeconds": 60},
        "service": {"type": "ClusterIP", "port": 80},
    }


def test_half_given_groups_get_the_rest_of_their_defaults(kubectl: Kubectl) -> None:
    document = yaml.safe_load(SMALLEST)
    document["spec"] |= {"parallelism": {"data": 2}, "restart": {"maxRestarts": 0}, "executor": "Ray", "ray": {}}
    kubectl("apply", "-f-", stdin=json.dumps(document))
    spec = kubectl.json("get", "ie", "smollm2")["spec"]
    assert spec["parallelism"] == {"data": 2, "tensor": 1, "pipeline": 1}
    assert spec["restart"] == {"maxRestarts": 0, "windowSeconds": 3600}
    assert spec["ray"] == {"placementStrategy": "Pack"}


def test_a_misspelt_field_is_named_by_kubectl_apply(kubectl: Kubectl) -> None:
    with pytest.raises(LocalkubeError, match=r'unknown field "spec\.replica"'):
        kubectl("apply", "-f-", stdin=SMALLEST + "  replica: 2\n")


def test_the_template_keeps_every_field_of_a_pod(kubectl: Kubectl) -> None:
    template = {"metadata": {"labels": {"team": "a"}}, "spec": {"nodeSelector": {"gpu": "h200"}, "newPodField": [{"x": 1}]}}
    document = yaml.safe_load(SMALLEST)
    document["spec"]["template"] = template
    kubectl("apply", "-f-", stdin=json.dumps(document))
    assert kubectl.json("get", "ie", "smollm2")["spec"]["template"] == template


def test_applying_the_definitions_twice_changes_nothing(api_cluster: cluster.Cluster) -> None:
    again = api_cluster.kubectl("apply", "-f", str(crd_schema.FOLDER)).splitlines()
    assert [line.rsplit(maxsplit=1)[-1] for line in again] == ["unchanged"] * 2


def test_the_definitions_are_established_and_structural(api_cluster: cluster.Cluster) -> None:
    for definition in crd_schema.kinds().values():
        found = json.loads(api_cluster.kubectl("get", "crd", definition["metadata"]["name"], "-o", "json"))
        conditions = {condition["type"]: condition["status"] for condition in found["status"]["conditions"]}
        assert conditions["Established"] == "True"
        assert conditions["NamesAccepted"] == "True"
        assert "NonStructuralSchema" not in conditions


def test_kubectl_scale_and_the_scale_subresource_work(kubectl: Kubectl, namespace: str) -> None:
    kubectl("apply", "-f-", stdin=SMALLEST)
    kubectl("scale", "ie/smollm2", "--replicas=3")
    status = {"status": {"replicas": 2, "selector": "enginehouse.dev/engine=smollm2,enginehouse.dev/role=leader"}}
    kubectl("patch", "ie", "smollm2", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    path = f"/apis/{API_VERSION}/namespaces/{namespace}/inferenceengines/smollm2/scale"
    scale = json.loads(kubectl("get", "--raw", path))
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "enginehouse.dev/engine=smollm2,enginehouse.dev/role=leader"}


def test_a_write_of_the_spec_leaves_the_status_and_the_other_way_round(kubectl: Kubectl) -> None:
    kubectl("apply", "-f-", stdin=SMALLEST)
    both = json.dumps({"spec": {"replicas": 4}, "status": {"replicas": 2}})
    kubectl("patch", "ie", "smollm2", "--subresource=status", "--type=merge", "-p", both)
    seen = kubectl.json("get", "ie", "smollm2")
    assert (seen["spec"]["replicas"], seen["status"]["replicas"], seen["metadata"]["generation"]) == (1, 2, 1)
    kubectl("patch", "ie", "smollm2", "--type=merge", "-p", json.dumps({"spec": {"replicas": 4}, "status": {"replicas": 9}}))
    seen = kubectl.json("get", "ie", "smollm2")
    assert (seen["spec"]["replicas"], seen["status"]["replicas"], seen["metadata"]["generation"]) == (4, 2, 2)


def test_columns_show_what_people_ask_first(kubectl: Kubectl) -> None:
    kubectl("apply", "-f-", stdin=SMALLEST)
    ready = {
        "type": "Ready", "status": "False", "reason": "Starting", "message": "1 of 2", "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    status = {"conditions": [ready], "readyReplicas": 1, "maxContextLength": 8192, "endpoint": "http://smollm2.demo.svc"}
    kubectl("scale", "ie/smollm2", "--replicas=2")
    kubectl("patch", "ie", "smollm2", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    head, line = (re.split(r"\s{2,}", text.strip()) for text in kubectl("get", "ie", "-o", "wide").splitlines())
    assert head == ["NAME", "READY", "SERVING", "REPLICAS", "CONTEXT", "REASON", "MODEL", "AGE", "ENDPOINT"]
    assert line[:7] == ["smollm2", "False", "1", "2", "8192", "Starting", "pvc://smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert line[8:] == ["http://smollm2.demo.svc"]
    assert kubectl("get", "ie").splitlines()[0].split() == head[:8]


def test_columns_of_replicas_show_place_state_and_end(kubectl: Kubectl) -> None:
    kubectl("apply", "-f-", stdin=SMALLEST)
    uid = kubectl.json("get", "ie", "smollm2")["metadata"]["uid"]
    owner = {"apiVersion": API_VERSION, "kind": "InferenceEngine", "name": "smollm2", "uid": uid, "controller": True}
    end = {"reason": "Rollout", "deadline": "2026-01-01T00:00:00Z"}
    replica = {**REPLICA, "metadata": {**REPLICA["metadata"], "ownerReferences": [owner]}, "spec": {**REPLICA["spec"], "end": end}}
    kubectl("create", "-f-", stdin=json.dumps(replica))
    kubectl.apply_row({**ROW, "state": "Draining"})
    head, line = (re.split(r"\s{2,}", text.rstrip()) for text in kubectl("get", "ier").splitlines())
    assert head == ["NAME", "READY", "ENGINE", "INDEX", "EPOCH", "STATE", "END", "AGE"]
    assert line[1:6] == ["smollm2", "0", "1", "Draining", "Rollout"]  # no condition yet, so nothing below READY


def test_the_category_lists_both_kinds(kubectl: Kubectl) -> None:
    kubectl("apply", "-f-", stdin=SMALLEST)
    kubectl("create", "-f-", stdin=json.dumps(REPLICA))
    names = kubectl("get", "enginehouse", "-o", "name").split()
    assert names == ["enginereplica.enginehouse.dev/smollm2-0-abcdefgh", "inferenceengine.enginehouse.dev/smollm2"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("ie", "one large language model served by one or more replicas"),
        ("ie.spec.model.uri", "hf://organisation/name on the Hugging Face hub"),
        ("ie.spec.memory.utilizationPercent", "percent, 1 to 100"),
        ("ie.spec.executor", "ENUM: InProcess Multiprocess Ray Simulated"),
        ("ie.status.lastFailure", "newest failure"),
        ("ier.spec.end", "never taken back"),
        ("ier.status.members.ranks", "maxContextLength"),
    ],
)
def test_explain_reads_well(path: str, says: str, kubectl: Kubectl) -> None:
    text = " ".join(kubectl("explain", path).split())
    assert says in text
    assert "<no description>" not in text


def test_each_monitor_owns_its_row_alone(kubectl: Kubectl) -> None:
    kubectl("create", "-f-", stdin=json.dumps(REPLICA))
    other = {**ROW, "name": "smollm2-0-abcdefgh-bbbbbbbb", "uid": "1c1f2a5e-0000-0000-0000-000000000002", "state": "Starting"}
    kubectl.apply_row(ROW)
    kubectl.apply_row(other)
    kubectl.apply_row({**ROW, "state": "Draining", "failures": []})
    rows = {row["name"]: row for row in kubectl.json("get", "ier", REPLICA["metadata"]["name"])["status"]["members"]}
    assert rows == {ROW["name"]: {**ROW, "state": "Draining", "failures": []}, other["name"]: other}
    with pytest.raises(LocalkubeError, match="conflicts with"):
        kubectl.apply_row({**ROW, "state": "Ended"}, manager="somebody-else")


def test_a_row_of_a_later_monitor_is_accepted_and_kept(kubectl: Kubectl) -> None:
    kubectl("create", "-f-", stdin=json.dumps(REPLICA))
    later = {
        **ROW,
        "state": "Hibernating",
        "zone": "a",
        "ranks": [{**ROW["ranks"][0], "state": "Warming", "temperature": {"celsius": 61}}],
        "failures": [{**ROW["failures"][0], "class": "CosmicRay", "device": "nvidia0"}],
    }
    kubectl.apply_row(later)
    assert kubectl.json("get", "ier", REPLICA["metadata"]["name"])["status"]["members"] == [later]


def test_a_row_without_the_pods_uid_is_refused(kubectl: Kubectl) -> None:
    kubectl("create", "-f-", stdin=json.dumps(REPLICA))
    with pytest.raises(LocalkubeError, match=r"members\[0\]\.uid: Required value"):
        kubectl.apply_row({"name": "a", "state": "Starting"})


class OtherGroup:
    """The engine's definition under another group, so that its schema may change while other tests run."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.group = f"schema-{uuid.uuid4().hex[:8]}.example.org"
        self._kubectl = kubectl

    def install(self, definition: dict[str, Any]) -> None:
        other = json.loads(json.dumps(definition).replace("enginehouse.dev", self.group))
        other["spec"]["names"] |= {"shortNames": [], "categories": []}
        self._kubectl("apply", "-f-", stdin=json.dumps(other))
        self._kubectl.cluster.until_served(f"crd/{other['metadata']['name']}")

    def remove(self) -> None:
        self._kubectl("delete", "crd", f"inferenceengines.{self.group}", "--wait=false")


@pytest.fixture
def other_group(kubectl: Kubectl) -> Iterator[OtherGroup]:
    made = OtherGroup(kubectl)
    yield made
    made.remove()


def without_rules(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a laxer past: shapes and defaults only."""
    dropped = ("x-kubernetes-validations", "pattern", "enum", "minimum", "maximum", "minLength", "maxLength")
    return {
        key: without_rules(value) if isinstance(value, dict) else value
        for key, value in schema.items()
        if key not in dropped or isinstance(value, dict)
    }


def test_objects_older_than_a_rule_can_still_be_changed_elsewhere(other_group: OtherGroup, kubectl: Kubectl) -> None:
    definition = crd_schema.kinds()["InferenceEngine"]
    version = definition["spec"]["versions"][0]
    lax = {**version, "schema": {"openAPIV3Schema": without_rules(version["schema"]["openAPIV3Schema"])}}
    other_group.install({**definition, "spec": {**definition["spec"], "versions": [lax]}})
    document = yaml.safe_load(SMALLEST.replace("enginehouse.dev", other_group.group))
    document["spec"] |= {"executor": "Ray", "parallelism": {"data": 3, "workersPerMember": 2}, "model": {"uri": "s3://bucket/m"}}
    kubectl("create", "-f-", stdin=json.dumps(document))
    other_group.install(definition)

    resource = f"inferenceengines.{other_group.group}"
    # The API server takes up a new schema shortly after it says so: wait for the rule by asking for a fresh bad object.
    kubectl("wait", f"crd/{resource}", "--for=jsonpath={.metadata.generation}=2", "--timeout=30s")
    fresh = {**document, "metadata": {"name": "fresh"}}
    refused = ""
    for _ in range(200):
        try:
            kubectl("create", "--dry-run=server", "-f-", stdin=json.dumps(fresh))
        except LocalkubeError as error:
            refused = str(error)
            break
    assert "must start with hf://" in refused
    kubectl("patch", resource, "smollm2", "--type=merge", "-p", json.dumps({"spec": {"replicas": 2}}))
    kubectl("patch", resource, "smollm2", "--subresource=status", "--type=merge", "-p", json.dumps({"status": {"replicas": 1}}))
    with pytest.raises(LocalkubeError, match="must divide data x tensor x pipeline"):
        kubectl("patch", resource, "smollm2", "--type=merge", "-p", json.dumps({"spec": {"parallelism": {"data": 5}}}))
    kubectl("patch", resource, "smollm2", "--type=merge", "-p", json.dumps({"spec": {"parallelism": {"data": 4}}}))
