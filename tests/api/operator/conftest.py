"""The operator as real processes on the real apiserver, and the scripted kubelet beside it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from kubernetes import client as kubernetes_client

import restricted_namespace
from kubectl_plugin import Plugin
from localkube import cluster

sys.path.insert(0, str(Path(__file__).parent))

from operator_process import Zygote
from scripted_kubelet import ScriptedKubelet
from scripted_node import ScriptedNode
from stage import Stage


@pytest.fixture(scope="session")
def zygote(api_cluster: cluster.Cluster) -> Iterator[Zygote]:
    with Zygote(api_cluster.kubeconfig) as made:
        yield made


@pytest.fixture(scope="session")
def node(api_client: kubernetes_client.ApiClient) -> Iterator[str]:
    with ScriptedNode(api_client, f"scripted-{uuid.uuid4().hex[:8]}") as made:
        yield made.name


NewStage = Callable[[], AbstractContextManager[Stage]]


@pytest.fixture
def new_stage(api_cluster: cluster.Cluster, api_client: kubernetes_client.ApiClient, node: str, zygote: Zygote) -> NewStage:
    """Makes namespaces with a kubelet in them, for restricted pods alone; no operator runs there yet."""
    core = kubernetes_client.CoreV1Api(api_client)

    @contextmanager
    def made() -> Iterator[Stage]:
        name = f"test-{uuid.uuid4().hex[:12]}"
        core.create_namespace(restricted_namespace.manifest(name))
        with ScriptedKubelet(api_client, name, node) as kubelet:
            stage = Stage(api_client, name, kubelet, zygote, api_cluster.audit_log)
            try:
                yield stage
            finally:
                stage.close()
        core.delete_namespace(name)

    return made


@pytest.fixture
def stage(new_stage: NewStage) -> Iterator[Stage]:
    """One of them."""
    with new_stage() as made:
        yield made


@pytest.fixture
def plugin(api_cluster: cluster.Cluster, stage: Stage, tmp_path: Path) -> Plugin:
    """``kubectl enginehouse`` of somebody who looks at the stage."""
    return Plugin(api_cluster, stage.namespace, tmp_path)
