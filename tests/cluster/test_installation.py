"""The chart where its pods run: `helm test` asks the operator that was installed, and engines outlive the installation.

Not done here: an operator that is killed instead of ended (`tests/api/operator/test_rest.py`).
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from killed_engine import MODEL, simulated
from localkube.installation import SYSTEM_NAMESPACE, Installation, install
from simulated_engine import scaled

pytestmark = pytest.mark.cluster


def helm(installation: Installation, *arguments: str) -> str:
    return installation.cluster.helm("--namespace", SYSTEM_NAMESPACE, *arguments, timeout_seconds=150)


def test_helm_test_finds_an_operator_that_answers_and_leaves_no_pod(installation: Installation) -> None:
    assert "Phase:          Succeeded" in helm(installation, "test", "enginehouse", "--timeout", "120s")
    left = installation.cluster.kubectl(
        "-n", SYSTEM_NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=test", "-o", "name"
    )
    assert left == ""


def test_engines_serve_while_nothing_is_installed_and_two_operators_of_their_namespace_take_them_over_as_they_are(
    installation: Installation, space: Any
) -> None:
    def take_away() -> None:
        # Operators of both installations beside each other would hold different Leases.
        helm(installation, "uninstall", "enginehouse", "--ignore-not-found", "--wait", "--timeout", "120s")

    def put_back(*set_values: str) -> None:
        install(installation.cluster, registry=os.environ.get("ENGINEHOUSE_TEST_REGISTRY"), set_values=set_values)

    def system(*arguments: str) -> str:
        return installation.kubectl(*arguments, namespace=SYSTEM_NAMESPACE)

    def operators() -> set[str]:
        found = system("get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "jsonpath={.items[*].metadata.name}")
        return set(found.split())

    def leader() -> str:
        """The pod whose process holds the Lease, which is kept beside the engines."""
        return str(space.get("lease/enginehouse-operator")["spec"]["holderIdentity"]).partition("_")[0]

    space.apply(simulated("kept"))
    space.wait("Ready", name="kept")
    one = space.lives()
    take_away()
    try:
        question = {"model": MODEL, "prompt": [65] * 8, "max_tokens": 4}
        assert space.post("kept", "/v1/completions", question)[0] == 200

        put_back(f"watchNamespace={space.namespace}", "replicas=2")
        assert "Phase:          Succeeded" in helm(installation, "test", "enginehouse", "--timeout", "120s")
        two = scaled(space, 2, name="kept")
        assert one.items() < two.items(), "no pod was made again"

        first = leader()
        (other,) = operators() - {first}
        # Scaled down to the other one, as no new one may come before it.
        system("annotate", "pod", first, "controller.kubernetes.io/pod-deletion-cost=-1")
        system("scale", "deployment", "--all", "--replicas=1")
        space.eventually("the other operator leads", lambda: leader() == other)
        assert two.items() < scaled(space, 3, name="kept").items()
        assert operators() == {other}
    finally:
        take_away()
        put_back()
