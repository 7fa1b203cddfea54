"""The API tests run on the Kubernetes that was asked for: API server and kubectl say so."""

from __future__ import annotations

import json

import pytest

from localkube import binaries, cluster

pytestmark = pytest.mark.api


def test_the_api_server_is_of_the_version_that_was_asked_for(api_cluster: cluster.Cluster, kubernetes_version: str) -> None:
    if not api_cluster.owned:
        pytest.skip("the cluster that KUBECONFIG names has the version that it has")
    versions = json.loads(api_cluster.kubectl("version", "--output=json"))
    wanted = binaries.KUBERNETES_VERSIONS[kubernetes_version]
    assert [versions[side]["gitVersion"] for side in ("serverVersion", "clientVersion")] == [wanted, wanted]
