"""What the API server makes of a write that means an object whose name is another one's by now."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from kubernetes.aio import config as transport_config
from stage import Stage

from enginehouse_operator import kubernetes_client as client
from localkube import cluster

pytestmark = pytest.mark.api


@pytest.fixture
async def connected(api_cluster: cluster.Cluster) -> AsyncIterator[client.KubernetesClient]:
    configuration = client.transport.Configuration()
    await transport_config.load_kube_config(config_file=str(api_cluster.kubeconfig), client_configuration=configuration)
    async with client.KubernetesClient(configuration) as found:
        yield found


async def test_the_status_of_a_deleted_engine_is_not_written_to_its_namesake(
    stage: Stage, connected: client.KubernetesClient
) -> None:
    stage.apply()
    before = stage.engine()
    version = before["metadata"]["resourceVersion"]
    stage.delete()
    with pytest.raises(client.NotFound):
        await connected.apply_status(client.ENGINES, before, {"restarts": 3}, version=version)
    stage.apply()
    with pytest.raises(client.Conflict):
        await connected.apply_status(client.ENGINES, before, {"restarts": 3}, version=version)
    assert "restarts" not in stage.engine()["status"]


async def test_a_patch_of_a_deleted_object_does_not_change_its_namesake(stage: Stage, connected: client.KubernetesClient) -> None:
    stage.apply()
    before = stage.engine()["metadata"]
    stage.delete()
    stage.apply()
    with pytest.raises(client.Conflict):
        await connected.merge(client.ENGINES, stage.namespace, "one", uid=before["uid"], patch={"spec": {"replicas": 7}})
    assert stage.engine()["spec"]["replicas"] == 1
