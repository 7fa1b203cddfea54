"""The operator with exactly the rights that the chart gives it for one namespace: enough for every change, and none left over."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client as kubernetes_client
from operator_process import Zygote
from scripted_kubelet import ScriptedKubelet
from stage import Stage

from localkube import cluster
from used_rights import ASKED_BY_ADMISSION, not_granted, refused, requests, unused

pytestmark = pytest.mark.api

CHART = Path(__file__).parents[3] / "charts" / "enginehouse"
ACCOUNT = "operator"


def chart_rules(helm: Path, namespace: str) -> list[dict[str, Any]]:
    """Of all roles that the chart installs for an operator of one namespace."""
    command = [str(helm), "template", "e", str(CHART), "--namespace", namespace, "--kube-version=v1.34.0"]
    command += ["--set", f"watchNamespace={namespace}"]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [rule for found in yaml.safe_load_all(rendered) if found and found["kind"] == "Role" for rule in found["rules"]]


@pytest.fixture
def confined(
    api_cluster: cluster.Cluster, api_client: kubernetes_client.ApiClient, namespace: str, node: str, tmp_path: Path
) -> Iterator[Stage]:
    """A stage whose operators act as a service account with the chart's role."""
    rules = chart_rules(api_cluster.binaries / "helm", namespace)
    core, rbac = kubernetes_client.CoreV1Api(api_client), kubernetes_client.RbacAuthorizationV1Api(api_client)
    core.create_namespaced_service_account(namespace, {"metadata": {"name": ACCOUNT}})
    rbac.create_namespaced_role(namespace, {"metadata": {"name": ACCOUNT}, "rules": rules})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    rbac.create_namespaced_role_binding(namespace, {"metadata": {"name": ACCOUNT}, "roleRef": reference, "subjects": [subject]})
    token = core.create_namespaced_service_account_token(ACCOUNT, namespace, {"spec": {"expirationSeconds": 3600}}).status.token
    kubeconfig = yaml.safe_load(api_cluster.kubeconfig.read_text())
    kubeconfig["users"] = [{"name": entry["name"], "user": {"token": token}} for entry in kubeconfig["users"]]
    confined_kubeconfig = tmp_path / "kubeconfig"
    confined_kubeconfig.write_text(yaml.safe_dump(kubeconfig))
    with Zygote(confined_kubeconfig) as zygote, ScriptedKubelet(api_client, namespace, node) as kubelet:
        stage = Stage(api_client, namespace, kubelet, zygote, api_cluster.audit_log)
        yield stage
        stage.close()


def members_of(stage: Stage, engine: str) -> set[str]:
    """Pods that have a row."""
    (replica,) = (raw for raw in stage.replicas() if raw["metadata"]["labels"]["enginehouse.dev/engine"] == engine)
    pods = {pod["metadata"]["name"] for pod in stage.pods() if pod["metadata"]["labels"]["enginehouse.dev/engine"] == engine}
    rows = {row["name"] for row in replica["status"]["members"]}
    return pods if pods == rows else set()


def test_the_charts_role_is_exactly_enough_for_the_whole_life_of_an_engine(confined: Stage, api_cluster: cluster.Cluster) -> None:
    stage, helm = confined, api_cluster.binaries / "helm"
    operator = stage.operator()
    stage.apply(replicas=1)
    stage.until_condition("Ready", "True")
    stage.patch(spec={"replicas": 2, "context": {"maxLength": 4096}, "service": {"port": 81}})
    stage.until_condition("Ready", "True")
    stage.kubelet.fate = lambda _: "die"
    stage.until(lambda: stage.engine()["status"].get("lastFailure"), saying="a death is published")
    stage.kubelet.fate = lambda _: "serve"
    stage.apply("ray", executor="Ray")
    stage.until_condition("Ready", "True", name="ray")
    for data in (2, 1):
        stage.patch("ray", spec={"parallelism": {"data": data}})
        stage.until_condition("Ready", "True", "AllReplicasServe", name="ray")
        stage.until(lambda data=data: len(members_of(stage, "ray")) == data, saying=f"{data} pods with their rows")
    stage.patch(spec={"model": {"uri": "pvc://missing/m"}})
    stage.until_condition("Ready", "False", "ClaimNotFound")
    stage.patch(spec={"suspend": True})
    stage.until_condition("Available", "False")
    assert operator.terminate() == 0
    user = f"system:serviceaccount:{stage.namespace}:{ACCOUNT}"
    own = [event for event in stage.audit() if event["user"]["username"] == user]
    assert own, "it acted as the service account"
    asked = list(requests(json.dumps(event) for event in own))
    assert refused(asked, of={user}) == []
    rules = chart_rules(helm, stage.namespace)
    assert not_granted(asked, rules) == []
    assert unused(asked, rules, exceptions=ASKED_BY_ADMISSION) == []
