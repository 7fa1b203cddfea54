"""The chart as helm renders it: valid values, restricted pods, rights that are enough and no more, on the real API server.

Not done here: whether the operator runs in it (`tests/cluster`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import crd_schema
from chart_values import CHART
from localkube import cluster
from localkube.binaries import KUBERNETES
from localkube.errors import LocalkubeError
from rendered_chart import RELEASE, HelmError, Render, of_kind

pytestmark = pytest.mark.api

KINDS_READ_SECONDS = 30.0
MONITORING = {"podMonitors": True, "rules": True, "dashboard": True, "labels": {"release": "prometheus"}, "logFormat": "json"}


def test_helm_lint_has_no_complaint(api_cluster: cluster.Cluster) -> None:
    command = [str(api_cluster.binaries / "helm"), "lint", "--strict", str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"watchNamespace": "default"},
        {"replicas": 2, "image__digest": "sha256:" + "0" * 64, "engineImage": "engine:1", "imagePullSecrets": ["pull"]},
        {
            "podAnnotations": {"a": "b"}, "podLabels": {"team": "x"}, "nodeSelector": {"disk": "ssd"}, "priorityClassName": "high",
            "tolerations": [{"key": "gpu", "operator": "Exists"}], "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
            "affinity": {"nodeAffinity": {}}, "serviceAccount__annotations": {"a": "b"}, "fullnameOverride": "other",
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
        },
        {"commonLabels": {"team": "x"}, "networkPolicy__enabled": True},
        {"commonLabels": {"team": "x"}, "networkPolicy__enabled": True, "watchNamespace": "default"},
        {"monitoring": MONITORING},
        {"monitoring": MONITORING, "watchNamespace": "default"},
    ],
    ids=[
        "defaults", "one namespace", "images", "placement", "networks", "networks of one namespace", "monitoring",
        "monitoring of one namespace",
    ],
)  # fmt: skip
def test_everything_rendered_is_accepted(
    values: dict[str, object], render: Render, api_cluster: cluster.Cluster, namespace: str, request: pytest.FixtureRequest
) -> None:
    if "monitoring" in values:
        request.getfixturevalue("with_foreign_kinds")
    for found in render(**values):
        if found["kind"] == "CustomResourceDefinition":
            continue  # installed already, by other hands than helm's
        where = [] if "namespace" in found["metadata"] else ["-n", namespace]
        api_cluster.kubectl(*where, "create", "--dry-run=server", "-f-", stdin=json.dumps(found))


@pytest.mark.parametrize(
    "values",
    [
        {"image__tga": "1"},
        {"repicas": 2},
        {"replicas": -1},
        {"crds__enabled": "yes"},
        {"imagePullPolicy": "Sometimes"},
        {"image__digest": "latest"},
        {"watchNamespace": "two words"},
        {"commonLabels": {"app.kubernetes.io/name": "mine"}},
        {"podLabels": {"app.kubernetes.io/component": "mine"}},
        {"networkPolicy__apiServerPorts": []},
        {"topologySpreadConstraints": [{"maxSkew": 1}]},
        {"extraVolumes": [{"emptyDir": {}}]},
    ],
    ids=lambda values: next(iter(values)),
)
def test_wrong_values_are_refused_before_anything_is_sent(values: dict[str, object], render: Render) -> None:
    with pytest.raises(HelmError, match="values don't meet the specifications of the schema"):
        render(**values)


def test_a_chart_that_depends_on_this_one_may_switch_it_on_and_off(api_cluster: cluster.Cluster, tmp_path: Path) -> None:
    """By a condition, whose value reaches this chart among its own."""
    needs = {"name": CHART.name, "version": ">=0-0", "condition": f"{CHART.name}.enabled"}
    parent = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [needs]}
    (tmp_path / "Chart.yaml").write_text(json.dumps(parent))
    shutil.copytree(CHART, tmp_path / "charts" / CHART.name)
    for enabled in ("true", "false"):
        command = [str(api_cluster.binaries / "helm"), "template", RELEASE, str(tmp_path), "--kube-version", f"{KUBERNETES}.0"]
        command += ["--set", f"{CHART.name}.enabled={enabled}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "kind: Deployment" in done.stdout) == (0, enabled == "true"), done.stderr


def test_every_value_has_a_comment_and_a_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    assert values.keys() == schema["properties"].keys() - {"global", "enabled"}
    for name, value in values.items():
        nested = schema["properties"][name]
        if "properties" in nested and name != "resources":
            assert value.keys() == nested["properties"].keys()
            assert all(f"# -- {name}.{key} " in text for key in value)
        else:
            assert f"# -- {name} " in text


@pytest.mark.parametrize(("keep", "policy"), [(True, "keep"), (False, None)])
def test_the_definitions_are_those_of_the_repository_and_kept_on_uninstall(keep: bool, policy: str | None, render: Render) -> None:
    definitions = of_kind(render(crds__keep=keep), "CustomResourceDefinition")
    for found in definitions:
        assert found["metadata"].pop("annotations", {}).get("helm.sh/resource-policy") == policy
    assert {found["spec"]["names"]["kind"]: found for found in definitions} == crd_schema.kinds()
    assert of_kind(render(crds__enabled=False), "CustomResourceDefinition") == []


def test_the_operators_pod_passes_restricted_pod_security(render: Render, api_cluster: cluster.Cluster, namespace: str) -> None:
    api_cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    objects = render()
    (deployment,) = of_kind(objects, "Deployment")
    (account,) = of_kind(objects, "ServiceAccount")
    api_cluster.kubectl("-n", namespace, "create", "-f-", stdin=json.dumps(account))
    template = deployment["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": "operator"}}
    api_cluster.kubectl("-n", namespace, "create", "--dry-run=server", "-f-", stdin=json.dumps(pod))
    (container,) = template["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["resources"]["limits"]["memory"]


def test_the_operators_flags_carry_the_values(render: Render) -> None:
    objects = render(
        image={"repository": "r/op", "tag": "7"}, engineImage="r/engine:7", imagePullPolicy="Never", watchNamespace="ml"
    )
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "r/op:7"
    assert container["args"] == [
        "--engine-image=r/engine:7", "--monitor-image=r/op:7", "--image-pull-policy=Never", "--health-port=8080",
        "--metrics-port=9090", "--namespace=ml",
    ]  # fmt: skip


def test_one_namespace_means_no_cluster_wide_rights(render: Render, namespace: str) -> None:
    objects = render(watchNamespace="ml", crds__enabled=False)
    assert of_kind(objects, "ClusterRole", "ClusterRoleBinding") == []
    assert {found["metadata"]["namespace"] for found in of_kind(objects, "Role", "RoleBinding")} == {"ml"}
    subject = {"kind": "ServiceAccount", "name": "enginehouse-operator", "namespace": namespace}
    assert [found["subjects"] for found in of_kind(objects, "RoleBinding")] == [[subject], [subject]]


class AsOperator:
    """kubectl as the operator's service account, with the chart's rights and nothing else."""

    def __init__(self, api_cluster: cluster.Cluster, namespace: str) -> None:
        self._cluster = api_cluster
        self.namespace = namespace

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        account = f"--as=system:serviceaccount:{self.namespace}:enginehouse-operator"
        return self._cluster.kubectl(account, "-n", self.namespace, *arguments, stdin=stdin)

    def may(self, *what: str) -> bool:
        """kubectl exits 1 for a no, and says so."""
        try:
            return self("auth", "can-i", *what).strip() == "yes"
        except LocalkubeError as error:
            if "exited 1" not in str(error) or "error:" in str(error):
                raise
            return False


@pytest.fixture
def as_operator(render: Render, api_cluster: cluster.Cluster, namespace: str) -> AsOperator:
    for found in of_kind(render(watchNamespace=namespace), "ServiceAccount", "Role", "RoleBinding"):
        api_cluster.kubectl("-n", namespace, "create", "-f-", stdin=json.dumps(found))
    return AsOperator(api_cluster, namespace)


@pytest.mark.parametrize("watch", ["", "ml"])
def test_the_rights_are_the_same_in_one_namespace_and_in_all(watch: str, render: Render) -> None:
    engines = [found for found in of_kind(render(watchNamespace=watch), "Role", "ClusterRole") if len(found["rules"]) > 5]
    (every,) = [found for found in of_kind(render(), "ClusterRole") if len(found["rules"]) > 5]
    assert [found["rules"] for found in engines] == [every["rules"]]


ALL = ("get", "list", "watch", "create", "patch", "delete")
MAY = [
    *((verb, "inferenceengines") for verb in ("get", "list", "watch")),
    ("patch", "inferenceengines", "--subresource=status"),
    *((verb, kind) for kind in ("enginereplicas", "pods") for verb in ALL if verb != "get"),
    ("patch", "enginereplicas", "--subresource=status"),
    *((verb, "services") for verb in ("get", "create", "patch")),
    *((verb, kind) for kind in ("serviceaccounts", "roles", "rolebindings") for verb in ("list", "create", "patch")),
    ("create", "secrets"),
    ("get", "persistentvolumeclaims"),
    ("create", "events"),
    ("create", "leases.coordination.k8s.io"),
    ("get", "leases.coordination.k8s.io/enginehouse-operator"),
    ("update", "leases.coordination.k8s.io/enginehouse-operator"),
]
MAY_NOT = [
    *((verb, "secrets") for verb in ALL if verb != "create"),
    *((verb, "inferenceengines") for verb in ("update", "patch", "delete", "create")),
    ("create", "pods", "--subresource=exec"),
    ("get", "pods", "--subresource=log"),
    ("get", "configmaps"),
    ("delete", "services"),
    ("delete", "roles"),
    *(("get", kind) for kind in ("nodes", "pods", "enginereplicas")),
    ("escalate", "roles"),
    ("bind", "roles"),
    ("impersonate", "serviceaccounts"),
    ("create", "serviceaccounts", "--subresource=token"),
    ("update", "leases.coordination.k8s.io"),
]


def test_the_operator_has_the_rights_it_needs_and_no_others(as_operator: AsOperator) -> None:
    assert [case for case in MAY if not as_operator.may(*case)] == []
    assert [case for case in MAY_NOT if as_operator.may(*case)] == []


def test_owners_that_block_deletion_take_a_right_that_the_operator_has(
    as_operator: AsOperator, api_cluster: cluster.Cluster
) -> None:
    """Of clusters whose admission asks for it; without a question in the audit log, so its use shows here."""
    if not api_cluster.owned:
        pytest.skip("your cluster may not ask")
    namespace = as_operator.namespace
    owner = {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "name": "e",
        "uid": "u",
        "blockOwnerDeletion": True,
    }
    metadata = {"name": "owned", "ownerReferences": [owner]}
    owned = json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}})
    deadline = time.monotonic() + KINDS_READ_SECONDS
    while True:
        try:
            as_operator("create", "--dry-run=server", "-f-", stdin=owned)
            break
        except LocalkubeError as error:
            if "cannot find RESTMapping" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.5)
    api_cluster.kubectl("-n", namespace, "create", "role", "maker", "--verb=create", "--resource=services")
    api_cluster.kubectl("-n", namespace, "create", "rolebinding", "maker", "--role=maker", f"--serviceaccount={namespace}:maker")
    maker = f"--as=system:serviceaccount:{namespace}:maker"
    with pytest.raises(LocalkubeError, match="a resource you can't set finalizers on"):
        api_cluster.kubectl(maker, "-n", namespace, "create", "--dry-run=server", "-f-", stdin=owned)


def role(name: str, rules: list[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules})


def test_the_operator_can_give_monitors_their_rights_but_no_more(as_operator: AsOperator) -> None:
    own = {"apiGroups": ["enginehouse.dev"], "resourceNames": ["r"]}
    rules = [
        {**own, "resources": ["enginereplicas"], "verbs": ["list", "watch"]},
        {**own, "resources": ["enginereplicas/status"], "verbs": ["patch"]},
    ]
    as_operator("apply", "--server-side", "-f-", stdin=role("monitor", rules))
    as_operator("create", "rolebinding", "monitor", "--role=monitor", f"--serviceaccount={as_operator.namespace}:monitor")
    too_much = role("thief", [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}])
    with pytest.raises(LocalkubeError, match="attempting to grant RBAC permissions not currently held"):
        as_operator("apply", "--server-side", "-f-", stdin=too_much)
