"""The operator as real processes on the real apiserver, and the scripted kubelet beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client as kubernetes_client

from localkube import cluster

sys.path.insert(0, str(Path(__file__).parent))

from operator_process import Zygote
from scripted_kubelet import ScriptedKubelet
from stage import Stage


@pytest.fixture(scope="session")
def zygote(api_cluster: cluster.Cluster) -> Iterator[Zygote]:
    with Zygote(api_cluster.kubeconfig) as made:
        yield made


@pytest.fixture
def stage(api_cluster: cluster.Cluster, api_client: kubernetes_client.ApiClient, namespace: str, zygote: Zygote) -> Iterator[Stage]:
    """A namespace with a kubelet in it; no operator runs yet."""
    with ScriptedKubelet(api_client, namespace) as kubelet:
        made = Stage(api_client, namespace, kubelet, zygote, api_cluster.audit_log)
        yield made
        made.close()
