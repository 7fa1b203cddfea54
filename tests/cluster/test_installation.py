"""The chart where its pods run: `helm test` asks the operator that was installed, and engines outlive the installation."""

from __future__ import annotations

import os
from typing import Any

import pytest

from killed_engine import MODEL, simulated
from localkube.installation import SYSTEM_NAMESPACE, Installation, install

pytestmark = pytest.mark.cluster


def helm(installation: Installation, *arguments: str) -> str:
    return installation.cluster.helm("--namespace", SYSTEM_NAMESPACE, *arguments, timeout_seconds=150)


def test_helm_test_finds_an_operator_that_answers_and_leaves_no_pod(installation: Installation) -> None:
    assert "Phase:          Succeeded" in helm(installation, "test", "enginehouse", "--timeout", "120s")
    left = installation.cluster.kubectl(
        "-n", SYSTEM_NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=test", "-o", "name"
    )
    assert left == ""


def test_engines_serve_while_nothing_is_installed_and_are_taken_over_as_they_are(installation: Installation, space: Any) -> None:
    space.apply(simulated("kept"))
    space.wait("Ready", name="kept")
    before = space.lives()
    helm(installation, "uninstall", "enginehouse", "--wait", "--timeout", "120s")
    try:
        question = {"model": MODEL, "prompt": [65] * 8, "max_tokens": 4}
        assert space.post("kept", "/v1/completions", question)[0] == 200
    finally:
        install(installation.cluster, registry=os.environ.get("ENGINEHOUSE_TEST_REGISTRY"))
    space.kubectl("scale", "ie/kept", "--replicas=2")
    space.wait("Progressing=False", name="kept")
    space.wait("Ready", name="kept")
    after = space.lives()
    assert before.items() <= after.items(), "no pod was made again"
    assert len(after) == 2
