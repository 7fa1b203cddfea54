"""Every manifest in `examples/` is accepted by the API server, as a user would apply it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from localkube import cluster

pytestmark = pytest.mark.api

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_accepted(example: Path, api_cluster: cluster.Cluster, namespace: str) -> None:
    said = api_cluster.kubectl("-n", namespace, "apply", "--dry-run=server", "-f", str(example)).splitlines()
    documents = [document for document in yaml.safe_load_all(example.read_text()) if document]
    assert len(said) == len(documents) > 0
    assert all(line.endswith("created (server dry run)") for line in said)


def test_there_are_the_examples_that_the_documentation_names() -> None:
    assert {path.stem for path in EXAMPLES} >= {"minimal", "smollm2", "smollm2-volume", "gpu", "parallel"}


def test_the_smallest_example_is_about_ten_lines() -> None:
    (smallest,) = (path for path in EXAMPLES if path.stem == "minimal")
    assert len(smallest.read_text().splitlines()) <= 10
