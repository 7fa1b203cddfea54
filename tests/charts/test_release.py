"""A release's life with helm on a cluster of its own: install, upgrade, uninstall; the CRDs and engines survive as documented.

Not done here: a schema that changes under running engines (`tests/api/operator/test_upgrade.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from localkube import cluster

pytestmark = pytest.mark.api

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh(kubernetes_version: str) -> Iterator[cluster.Cluster]:
    """A control plane that has never seen the CRDs."""
    name = f"rel{os.getpid()}"
    started = cluster.start(name, control_plane_only=True, controller_manager=True, kubernetes=kubernetes_version)
    yield started
    started.stop()


def test_engines_outlive_the_release_unless_told_otherwise(fresh: cluster.Cluster) -> None:
    def helm(*arguments: str) -> str:
        return fresh.helm("--namespace", "system", *arguments)

    chart = str(ROOT / "charts" / "enginehouse")

    def install(*values: str) -> str:
        return helm("upgrade", "--install", "enginehouse", chart, "--create-namespace", *values)

    notes = install()
    assert "kubectl get ie,ier" in notes
    assert "Uninstalling leaves the CRDs and every engine" in notes
    fresh.until_served("crd", "--all")
    fresh.kubectl("apply", "-f", str(ROOT / "examples" / "minimal.yaml"))

    install("--set", "replicas=0", "--set", "watchNamespace=default")
    assert fresh.kubectl("get", "deployment", "-n", "system", "-o", "jsonpath={.items[*].spec.replicas}") == "0"
    assert fresh.kubectl("get", "clusterrole", "-l", "app.kubernetes.io/part-of=enginehouse", "-o", "name") == ""

    helm("uninstall", "enginehouse")
    assert fresh.kubectl("get", "ie", "-o", "name") == "inferenceengine.enginehouse.dev/minimal\n"

    helm("install", "another", chart, "--take-ownership")
    helm("uninstall", "another")
    assert fresh.kubectl("get", "ie", "-o", "name") == "inferenceengine.enginehouse.dev/minimal\n"

    assert "WARNING: crds.keep is false" in install("--set", "crds.keep=false", "--take-ownership")
    assert fresh.kubectl("get", "ie", "-o", "name") == "inferenceengine.enginehouse.dev/minimal\n"
    helm("uninstall", "enginehouse")
    for kind in ("inferenceengines", "enginereplicas"):
        # An API server that is still setting up the storage of a changed CRD tries its deletion again once in a while.
        fresh.kubectl("wait", "--for=delete", f"crd/{kind}.enginehouse.dev", "--timeout=200s", timeout_seconds=210)
    assert "enginehouse.dev" not in fresh.kubectl("get", "crd", "-o", "name")
