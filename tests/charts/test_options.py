"""What the chart's options add: labels, volumes, spreading, a disruption budget, network policies, the admission policy; and where
values arrive that are only passed on.

Not done here: whether a network obeys the policies; what the admission policy refuses (`test_admission_policy.py`).
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import chart_values
from enginehouse_operator import names
from localkube import cluster
from localkube.installation import ROOT
from rendered_chart import Objects, Render, of_kind

pytestmark = pytest.mark.api

EVERYTHING: dict[str, object] = {
    "replicas": 2,
    "commonLabels": {"team": "x"},
    "networkPolicy__enabled": True,
    "admissionPolicy__enabled": True,
    "rbac__aggregate": True,
}
ENGINES = [{"key": names.LABEL_ENGINE, "operator": "Exists"}]


def pod_of(objects: Objects) -> dict[str, Any]:
    (deployment,) = of_kind(objects, "Deployment")
    template: dict[str, Any] = deployment["spec"]["template"]
    return template


def policies(objects: Objects) -> dict[str, dict[str, Any]]:
    """The network policies' specs by name."""
    return {found["metadata"]["name"]: found["spec"] for found in of_kind(objects, "NetworkPolicy")}


def test_with_one_namespace_nothing_is_cluster_wide_but_the_definitions(render: Render, api_cluster: cluster.Cluster) -> None:
    lines = api_cluster.kubectl("api-resources", "--namespaced=false", "--no-headers").splitlines()
    cluster_wide = {line.split()[-1] for line in lines}
    assert {"ClusterRole", "ValidatingAdmissionPolicy", "CustomResourceDefinition"} <= cluster_wide
    for with_definitions, expected in ((True, {"CustomResourceDefinition"}), (False, set())):
        objects = render(**EVERYTHING, watchNamespace="ml", crds__enabled=with_definitions)
        assert {found["kind"] for found in objects} & cluster_wide == expected


@pytest.mark.parametrize("watch", ["", "ml"])
def test_every_object_and_the_operators_pod_carry_the_common_labels(watch: str, render: Render) -> None:
    objects = render(**EVERYTHING, watchNamespace=watch)
    assert [found for found in objects if found["metadata"]["labels"].get("team") != "x"] == []
    assert pod_of(objects)["metadata"]["labels"]["team"] == "x"
    of_pods = pod_of(render(**EVERYTHING, podLabels={"team": "y", "tier": "1"}))["metadata"]["labels"]
    assert (of_pods["team"], of_pods["tier"], of_pods["app.kubernetes.io/component"]) == ("y", "1", "operator")


def test_labels_of_monitoring_stand_once_and_win_over_the_common_ones(render: Render) -> None:
    mine = {"team": "y", "grafana_dashboard": "mine"}
    switched_on = {"podMonitors": True, "rules": True, "dashboard": True, "labels": mine}
    objects = render(commonLabels={"team": "x", "tier": "1"}, monitoring=switched_on)
    found = [found["metadata"]["labels"] for found in of_kind(objects, "PodMonitor", "PrometheusRule", "ConfigMap")]
    assert len(found) == 4
    for labels in found:
        assert labels.items() >= (mine | {"tier": "1", "app.kubernetes.io/component": "operator"}).items()


def test_names_that_are_all_digits_stay_names(render: Render) -> None:
    """A namespace, say, may be called so. Unquoted they would be numbers, which the API server refuses."""
    objects = render(
        watchNamespace="1234", imagePullSecrets=["007"], priorityClassName="1e3", serviceAccount__name="99", nameOverride="42",
        networkPolicy__enabled=True, monitoring__podMonitors=True,
    )  # fmt: skip
    places = {found["metadata"]["namespace"] for found in objects if "namespace" in found["metadata"]}
    pod, account = pod_of(objects)["spec"], what_is_at("ServiceAccount metadata.name", objects)
    assert (places, account) == ({"1234"}, "99")
    assert (pod["serviceAccountName"], pod["priorityClassName"], pod["imagePullSecrets"]) == ("99", "1e3", [{"name": "007"}])
    assert what_is_at("RoleBinding subjects.0.name", objects) == "99"
    engines = next(found["spec"] for found in of_kind(objects, "PodMonitor") if "namespaceSelector" in found["spec"])
    assert engines["namespaceSelector"]["matchNames"] == ["1234"]
    values = [value for found in objects for value in found["metadata"].get("labels", {}).values()]
    assert [value for value in values if not isinstance(value, str)] == []


def test_labels_may_be_taken_away_with_null(render: Render) -> None:
    """As whoever overrides the values of a chart below his own does."""
    objects = render(podLabels=None, commonLabels=None, monitoring__labels=None, monitoring__dashboard=True)
    assert pod_of(objects)["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"


POD, TEST_POD = "Deployment spec.template.spec", "Pod spec"
DIGEST = "sha256:" + "0" * 64
ENV, TOLERATION = {"name": "HTTPS_PROXY", "value": "http://proxy"}, {"key": "gpu", "operator": "Exists"}
AFFINITY = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
RESOURCES = {"requests": {"cpu": "7m", "memory": "70Mi"}, "limits": {"memory": "700Mi"}}
ARRIVALS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "images": (
        {
            "image": {"repository": "r/op", "digest": DIGEST, "tag": "loses"},
            "imagePullPolicy": "Never",
            "imagePullSecrets": ["pull"],
        },
        {
            f"{POD}.containers.0.args.1": f"--monitor-image=r/op@{DIGEST}",
            **{f"{pod}.containers.0.image": f"r/op@{DIGEST}" for pod in (POD, TEST_POD)},
            **{f"{pod}.containers.0.imagePullPolicy": "Never" for pod in (POD, TEST_POD)},
            **{f"{pod}.imagePullSecrets": [{"name": "pull"}] for pod in (POD, TEST_POD)},
        },
    ),
    "pods": (
        {
            "replicas": 3, "nodeSelector": {"disk": "ssd"}, "tolerations": [TOLERATION], "affinity": AFFINITY,
            "priorityClassName": "high", "podAnnotations": {"team": "x"}, "extraEnv": [ENV], "resources": RESOURCES,
        },
        {
            "Deployment spec.replicas": 3,
            **{f"{pod}.nodeSelector": {"disk": "ssd"} for pod in (POD, TEST_POD)},
            **{f"{pod}.tolerations": [TOLERATION] for pod in (POD, TEST_POD)},
            f"{POD}.affinity": AFFINITY,
            f"{POD}.priorityClassName": "high",
            "Deployment spec.template.metadata.annotations.team": "x",
            f"{POD}.containers.0.env": [ENV],
            f"{POD}.containers.0.resources": RESOURCES,
        },
    ),
    "an account": (
        {"serviceAccount__name": "mine", "serviceAccount__annotations": {"team": "x"}, "nameOverride": "short"},
        {
            "Deployment metadata.name": "enginehouse-short-operator",
            "ServiceAccount metadata.name": "mine",
            "ServiceAccount metadata.annotations": {"team": "x"},
            f"{POD}.serviceAccountName": "mine",
            "ClusterRoleBinding subjects.0.name": "mine",
            "RoleBinding subjects.0.name": "mine",
        },
    ),
    "no account": (
        {"serviceAccount__create": False, "fullnameOverride": "whole"},
        {
            "Deployment metadata.name": "whole",
            "ServiceAccount": None,
            f"{POD}.serviceAccountName": "default",
            "ClusterRoleBinding subjects.0.name": "default",
        },
    ),
    "no rights": (
        {"rbac__create": False},
        {"ClusterRole": None, "ClusterRoleBinding": None, "Role": None, "RoleBinding": None},
    ),
}  # fmt: skip


def what_is_at(place: str, objects: Objects) -> Any:
    """Of the first object of a kind, or all of it. None: there is nothing."""
    kind, _, path = place.partition(" ")
    found: Any = next(iter(of_kind(objects, kind)), None)
    for key in filter(None, path.split(".")):
        found = found[int(key)] if isinstance(found, list) else (found or {}).get(key)
    return found


@pytest.mark.parametrize(("values", "arrivals"), ARRIVALS.values(), ids=ARRIVALS.keys())
def test_a_value_arrives_where_it_is_meant_to(values: dict[str, object], arrivals: dict[str, object], render: Render) -> None:
    objects = render(**values)
    assert {place: what_is_at(place, objects) for place in arrivals} == arrivals


def test_the_clusters_own_roles_cover_engines_unless_told_otherwise(render: Render) -> None:
    def covering(**values: object) -> int:
        labels = [found["metadata"]["labels"] for found in of_kind(render(**values), "ClusterRole")]
        return sum("rbac.authorization.k8s.io/aggregate-to-admin" in found for found in labels)

    assert (covering(), covering(rbac__aggregate=False)) == (2, 0)


def test_evictions_leave_an_operator_where_there_are_several(render: Render) -> None:
    assert of_kind(render(), "PodDisruptionBudget") == []
    objects = render(replicas=2)
    (budget,) = of_kind(objects, "PodDisruptionBudget")
    (deployment,) = of_kind(objects, "Deployment")
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]


def test_a_spread_constraint_counts_the_operators_pods_unless_it_says_which(render: Render) -> None:
    mine = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    other = mine | {"labelSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}
    objects = render(topologySpreadConstraints=[mine, other])
    (deployment,) = of_kind(objects, "Deployment")
    expected = [mine | {"labelSelector": deployment["spec"]["selector"]}, other]
    assert pod_of(objects)["spec"]["topologySpreadConstraints"] == expected


def test_extra_volumes_are_mounted_beside_the_operators_own(render: Render) -> None:
    volume, mount = {"name": "ca", "configMap": {"name": "ca"}}, {"name": "ca", "mountPath": "/ca"}
    pod = pod_of(render(extraVolumes=[volume], extraVolumeMounts=[mount]))["spec"]
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}, volume]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}, mount]


def test_the_operator_is_reached_at_its_two_ports_and_reaches_dns_and_the_api_server(render: Render) -> None:
    assert policies(render()) == {}
    objects = render(networkPolicy__enabled=True, networkPolicy__apiServerPorts=[16443])
    (spec,) = policies(objects).values()
    (deployment,) = of_kind(objects, "Deployment")
    assert spec["podSelector"] == deployment["spec"]["selector"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    (container,) = pod_of(objects)["spec"]["containers"]
    assert spec["ingress"] == [{"ports": [{"port": port["name"]} for port in container["ports"]]}]
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53, 16443]


def test_engines_of_the_one_namespace_are_reached_at_http_and_by_engines_alone_at_all_else(render: Render) -> None:
    objects = render(networkPolicy__enabled=True, watchNamespace="ml")
    (policy,) = (found for found in of_kind(objects, "NetworkPolicy") if found["metadata"].get("namespace") == "ml")
    selector = {"matchExpressions": ENGINES}
    assert policy["spec"] == {
        "podSelector": selector,
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": names.HTTP_PORT}]}, {"from": [{"podSelector": selector}]}],
    }
    example = yaml.safe_load((ROOT / "examples" / "networkpolicy.yaml").read_text())
    assert example["spec"] == policy["spec"]


def test_the_admission_policy_is_there_unless_it_is_switched_off_or_there_is_one_namespace(render: Render) -> None:
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    policy, binding = of_kind(render(), *kinds)
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert of_kind(render(admissionPolicy__enabled=False), *kinds) == []
    assert of_kind(render(admissionPolicy__enabled=True, watchNamespace="ml"), *kinds) == []


def test_the_readmes_table_of_rights_is_made_from_the_rules_of_the_role(render: Render) -> None:
    (role,) = [found for found in of_kind(render(), "ClusterRole") if len(found["rules"]) > 5]
    assert role["rules"] == chart_values.operator_rules()
