"""Fixtures: a real kube-apiserver with the CRDs in it. A conftest that wants them imports them.

The one job: one control plane per test run, shared with runs beside it, and a fresh namespace per test.
The invariant kept: the last run that uses the cluster stops it; one that a killed run left is used and stopped by the next.
Each version of Kubernetes has a cluster of its own.
Not done here: kubelets; nothing runs in these pods (the tests in `tests/cluster` have a kubelet).
"""

from __future__ import annotations

import fcntl
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

import gitops_tools
from localkube import cluster
from localkube.binaries import KUBERNETES
from localkube.paths import cluster_paths

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def api_cluster(kubernetes_version: str) -> Iterator[cluster.Cluster]:
    """A cluster that answers and knows both kinds: etcd, kube-apiserver and controller-manager, or the one KUBECONFIG names."""
    name = f"api{kubernetes_version.replace('.', '')}"
    users = cluster_paths(name).cache.locks / f"users-{name}.lock"
    users.parent.mkdir(parents=True, exist_ok=True)
    with users.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if kubernetes_version == KUBERNETES:
            started = cluster.from_environment_or_start(name, control_plane_only=True, controller_manager=True)
        else:  # of another version than KUBECONFIG may have
            started = cluster.start(name, control_plane_only=True, controller_manager=True, kubernetes=kubernetes_version)
        started.kubectl("apply", "-f", str(REPOSITORY / "crds"))
        started.until_served("-f", str(REPOSITORY / "crds"))
        yield started
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another run uses it
        started.stop()


@pytest.fixture(scope="session")
def api_client(api_cluster: cluster.Cluster) -> Iterator[kubernetes_client.ApiClient]:
    """The official client, as administrator."""
    with kubernetes_config.new_client_from_config(str(api_cluster.kubeconfig)) as made:
        yield made


@pytest.fixture(scope="session")
def with_foreign_kinds(api_cluster: cluster.Cluster) -> None:
    """The cluster knows the kinds of other projects that examples and the chart name."""
    if not api_cluster.owned:
        pytest.skip("definitions of other projects are not put into a cluster of yours")
    folder = str(gitops_tools.foreign_crds())
    api_cluster.kubectl("apply", "--server-side", "-f", folder)
    api_cluster.until_served("-f", folder)


@pytest.fixture
def namespace(api_client: kubernetes_client.ApiClient) -> Iterator[str]:
    """The name of a namespace of this test alone; it is deleted afterwards, without waiting."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    core = kubernetes_client.CoreV1Api(api_client)
    core.create_namespace(kubernetes_client.V1Namespace(metadata=kubernetes_client.V1ObjectMeta(name=name)))
    yield name
    core.delete_namespace(name)
