"""helm upgrade from a chart whose CRD lacks a defaulted field, and back, under a running operator: no replica ends, no pod changes.

The one job: the two schemas on a control plane that no other test uses, since definitions are everybody's.
Not done here: other images (`test_rest.py`, `tests/cluster/test_upgrade.py`); the rest of it (`tests/charts/test_release.py`).
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config
from operator_process import Zygote
from scripted_kubelet import ScriptedKubelet
from scripted_node import ScriptedNode
from stage import Stage

import earlier_tree
import restricted_namespace
from chart_values import CHART
from localkube import cluster

pytestmark = pytest.mark.api

FIELD, DEFAULT = "hang", {"stallSeconds": 120}


@pytest.fixture
def fresh(kubernetes_version: str) -> Iterator[cluster.Cluster]:
    name = f"upg{os.getpid()}"
    started = cluster.start(name, control_plane_only=True, controller_manager=True, kubernetes=kubernetes_version)
    yield started
    started.stop()


@pytest.fixture
def stage(fresh: cluster.Cluster) -> Iterator[Stage]:
    """A namespace there with a kubelet in it; no definitions yet."""
    with (
        kubernetes_config.new_client_from_config(str(fresh.kubeconfig)) as client,
        ScriptedNode(client, f"scripted-{uuid.uuid4().hex[:8]}") as node,
        Zygote(fresh.kubeconfig) as zygote,
    ):
        kubernetes_client.CoreV1Api(client).create_namespace(restricted_namespace.manifest("engines"))
        with ScriptedKubelet(client, "engines", node.name) as kubelet:
            made = Stage(client, "engines", kubelet, zygote, fresh.audit_log)
            yield made
            made.close()


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The chart as it was before the field came."""
    shutil.copytree(CHART, tmp_path / "enginehouse")
    return earlier_tree.without(FIELD, chart=tmp_path / "enginehouse")


def pods(stage: Stage) -> dict[str, str]:
    """Versions by UID: the same pods, untouched."""
    return {pod["metadata"]["uid"]: pod["metadata"]["resourceVersion"] for pod in stage.pods()}


def look_again(stage: Stage) -> None:
    """A person's note wakes the operator, which reads everything under the schema that holds now."""
    before = stage.reads()
    stage.patch(metadata={"annotations": {"note": str(before)}})
    stage.until(lambda: stage.reads() > before, saying="the operator has looked")
    stage.until_settled(lambda: True)


def test_an_added_default_and_its_rollback_end_no_replica_and_change_no_pod(
    stage: Stage, fresh: cluster.Cluster, earlier: Path
) -> None:
    def helm(*arguments: str) -> str:
        return fresh.helm("--namespace", "system", *arguments)

    # The operator is a process of this test: the chart's own has no kubelet to run it.
    helm("install", "enginehouse", str(earlier), "--create-namespace", "--set", "replicas=0")
    fresh.until_served("crd", "--all")
    operator = stage.operator()
    stage.apply(replicas=2)
    stage.until_condition("Ready", "True")
    stage.until_settled(lambda: True)
    assert FIELD not in stage.engine()["spec"]
    before, writes = pods(stage), len(stage.writes())
    assert len(before) == 2

    helm("upgrade", "enginehouse", str(CHART), "--set", "replicas=0")
    stage.until(lambda: stage.engine()["spec"].get(FIELD) == DEFAULT, saying="the new schema holds")
    look_again(stage)
    assert (pods(stage), stage.writes()[writes:]) == (before, [])
    stage.patch(spec={"replicas": 3})
    stage.until_condition("Ready", "True")
    with_the_third = pods(stage)
    assert before.items() < with_the_third.items()

    stage.until_settled(lambda: True)
    writes = len(stage.writes())
    helm("rollback", "enginehouse", "1")
    stage.until(lambda: FIELD not in stage.engine()["spec"], saying="the earlier schema holds again")
    look_again(stage)
    assert (pods(stage), stage.writes()[writes:]) == (with_the_third, [])
    assert [replica["spec"].get("end") for replica in stage.replicas()] == [None, None, None]
    assert operator.terminate() == 0
