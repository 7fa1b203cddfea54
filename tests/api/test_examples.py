"""Every manifest below `examples/` and in the pages is accepted by the API server, as a user would apply it; other projects' kinds
by one that knows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import gitops_tools
import page_blocks
from localkube import cluster
from localkube.errors import LocalkubeError

pytestmark = pytest.mark.api

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = {str(path.relative_to(FOLDER).with_suffix("")): path for path in sorted(FOLDER.rglob("*.yaml"))}
OWN = ("enginehouse.dev", "v1", "autoscaling")
"""Groups that every API server of these tests has."""
BY_TYPE_ALONE = "HelmRelease"
"""Its definition is in no module that can be had: Flux's own types decode it."""

ENGINE: dict[str, Any] = {
    "apiVersion": "enginehouse.dev/v1alpha1",
    "kind": "InferenceEngine",
    "metadata": {"name": "part"},
    "spec": {"model": {"uri": "file:///model"}},
}
REPLICA = ENGINE | {"kind": "EngineReplica", "spec": {"engine": ENGINE["spec"], "index": 0, "epoch": 1}}
NO_OBJECTS = ({"scrape_configs"}, {"plugins"})
"""Blocks for Prometheus and for an endpoint picker: `tests/charts/test_monitoring.py` compares the names in them."""


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_accepted(name: str, api_cluster: cluster.Cluster, namespace: str, request: pytest.FixtureRequest) -> None:
    found = documents(EXAMPLES[name])
    if any(document["apiVersion"].split("/")[0] not in OWN for document in found):
        request.getfixturevalue("with_foreign_kinds")
    decoded = [document for document in found if document["kind"] == BY_TYPE_ALONE]
    verdicts = gitops_tools.helm_releases(decoded) if decoded else []
    assert [verdict for verdict in verdicts if verdict.status != "Accepted"] == []
    applied = yaml.safe_dump_all(document for document in found if document not in decoded)
    said = api_cluster.kubectl("-n", namespace, "apply", "--dry-run=server", "-f", "-", stdin=applied).splitlines()
    assert len(said) + len(decoded) == len(found) > 0
    assert all(line.endswith("created (server dry run)") for line in said)


def of_a_page(document: dict[str, Any]) -> dict[str, Any]:
    """A part of an engine or of a replica's status at its place in a whole one."""
    if document.keys() == {"spec"}:
        return ENGINE | {"spec": ENGINE["spec"] | document["spec"]}
    return REPLICA | document if document.keys() == {"status"} else document


PAGES = {name: of_a_page(document) for name, document in page_blocks.documents() if document.keys() not in NO_OBJECTS}


@pytest.fixture
def try_document(api_cluster: cluster.Cluster, namespace: str) -> Callable[[dict[str, Any]], None]:
    """A LocalkubeError, if the API server would not take it or does not know a field."""

    def run(document: dict[str, Any]) -> None:
        arguments = ["-n", namespace, "apply", "--server-side", "-f", "-"]
        if "status" in document:
            api_cluster.kubectl(*arguments, stdin=yaml.safe_dump(REPLICA))
            arguments.append("--subresource=status")
        api_cluster.kubectl(*arguments, "--dry-run=server", stdin=yaml.safe_dump(document))

    return run


@pytest.mark.parametrize("name", PAGES)
def test_a_manifest_in_a_page_is_accepted(name: str, try_document: Callable[[dict[str, Any]], None]) -> None:
    try_document(PAGES[name])


@pytest.mark.parametrize("part", [{"spec": {"replica": 2}}, {"status": {"member": []}}], ids=["spec", "status"])
def test_a_misspelt_field_in_a_page_would_be_refused(part: dict[str, Any], try_document: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(LocalkubeError, match=r"field not declared in schema|unknown field"):
        try_document(of_a_page(part))


def test_a_field_that_flux_does_not_know_is_refused() -> None:
    (release,) = (document for document in documents(EXAMPLES["gitops/flux/operator"]) if document["kind"] == BY_TYPE_ALONE)
    (verdict,) = gitops_tools.helm_releases([release | {"spec": release["spec"] | {"crds": "Skip"}}])
    assert verdict.status == "Refused"
    assert "crds" in verdict.message


def test_there_are_the_examples_that_the_documentation_names() -> None:
    assert EXAMPLES.keys() >= {"minimal", "smollm2", "smollm2-volume", "gpu", "parallel", "ray", "queued"}


def test_the_smallest_example_is_about_ten_lines() -> None:
    assert len(EXAMPLES["minimal"].read_text().splitlines()) <= 10
