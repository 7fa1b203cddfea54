"""A version of Kubernetes that is said to be tested is built from its own modules, and `make proof` runs the API tests on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from localkube import binaries

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("asked", "version"), binaries.KUBERNETES_VERSIONS.items())
def test_a_kubernetes_is_built_from_the_modules_of_its_version(asked: str, version: str) -> None:
    # The last, as of programs of one name the last module's are taken.
    folder = [module.folder for module in binaries.modules_of(asked) if "kube-apiserver" in module.programs][-1]
    lines = (ROOT / "tests" / "localkube" / "go" / folder / "go.mod").read_text()
    assert re.findall(r"\tk8s.io/kubernetes (\S+)", lines) == [version]
    assert set(re.findall(r" => \S+ (\S+)", lines)) == {version.replace("v1.", "v0.")}


def test_make_proof_runs_the_api_tests_on_every_kubernetes() -> None:
    proof = (ROOT / "Makefile").read_text().partition("\nproof:")[2].partition("\n\n")[0]
    assert re.findall(r"\$\(PYTEST\) -m api --kubernetes (\S+)", proof) == [
        version for version in binaries.KUBERNETES_VERSIONS if version != binaries.KUBERNETES
    ]
