"""Requests for GPUs on nodes that offer them, played by KWOK with the real scheduler: scheduled, or told why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config
from operator_process import Zygote
from scripted_kubelet import ScriptedKubelet
from stage import Stage

import restricted_namespace
from localkube import cluster

pytestmark = pytest.mark.api

NODES, GPUS = 2, 4


@pytest.fixture(scope="module")
def gpu_cluster(kubernetes_version: str) -> Iterator[cluster.Cluster]:
    name = f"gpus{kubernetes_version.replace('.', '')}"
    started = cluster.start(name, control_plane_only=True, fake_nodes=NODES, fake_gpus=GPUS, kubernetes=kubernetes_version)
    crds = str(Path(__file__).parents[3] / "crds")
    started.kubectl("apply", "-f", crds)
    started.until_served("-f", crds)
    yield started
    started.stop()


@pytest.fixture
def stage(gpu_cluster: cluster.Cluster) -> Iterator[Stage]:
    api = kubernetes_config.new_client_from_config(str(gpu_cluster.kubeconfig))
    core = kubernetes_client.CoreV1Api(api)
    core.create_namespace(restricted_namespace.manifest("gpu-test"))
    with Zygote(gpu_cluster.kubeconfig) as zygote, ScriptedKubelet(api, "gpu-test", "none") as kubelet:
        kubelet.fate = lambda _: "report"
        made = Stage(api, "gpu-test", kubelet, zygote, gpu_cluster.audit_log)
        yield made
        made.close()


def test_gpus_that_there_are_are_given_and_too_many_are_told(stage: Stage) -> None:
    stage.operator()
    stage.apply("fits", replicas=2, resources={"limits": {"nvidia.com/gpu": 3}})
    stage.until_condition("Ready", "True", name="fits")
    pods = [pod for pod in stage.pods() if pod["metadata"]["labels"]["enginehouse.dev/engine"] == "fits"]
    assert {pod["spec"]["nodeName"] for pod in pods} == {"kwok-0", "kwok-1"}, "three of four each, so one node each"
    stage.apply("greedy", resources={"limits": {"nvidia.com/gpu": GPUS + 1}})
    told = stage.until_condition("Ready", "False", "Unschedulable", name="greedy")
    assert "Insufficient nvidia.com/gpu" in told["message"]
    assert "ask for less in spec.resources" in told["message"]
    stage.patch("greedy", spec={"resources": {"limits": {"nvidia.com/gpu": 1}}})
    stage.until_condition("Ready", "True", name="greedy")
