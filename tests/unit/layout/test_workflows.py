"""The workflow files are YAML that asks for few rights and runs what there is. Whether the service takes them only a run shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS: dict[str, dict[str, Any]] = {path.stem: yaml.load(path.read_text(), yaml.BaseLoader) for path in FOLDER.glob("*.yml")}


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job.get("steps", ())]


def scripts(name: str) -> str:
    return "\n".join(step.get("run", "") for step in steps(name))


def test_a_change_passes_what_everybody_runs_with_the_cache_of_everybody() -> None:
    assert re.search(r"\.ci/run$", scripts("ci"), re.MULTILINE)
    (cache,) = (step["with"] for step in steps("ci") if step.get("uses", "").startswith("actions/cache@"))
    assert cache["path"] == "~/.cache/enginehouse"
    assert {"pull_request", "push"} <= WORKFLOWS["ci"]["on"].keys()
    (checkout,) = (step["with"] for step in steps("ci") if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["fetch-depth"] == "0", "earlier commits are there to upgrade from"


def test_a_release_passes_the_same_first_and_is_made_by_tags_alone() -> None:
    jobs = WORKFLOWS["release"]["jobs"]
    assert jobs["test"]["uses"] == "./.github/workflows/ci.yml"
    assert (jobs["images"]["needs"], jobs["artifacts"]["needs"]) == ("test", "images")
    assert WORKFLOWS["release"]["on"].keys() == {"push"}
    assert WORKFLOWS["release"]["on"]["push"].keys() == {"tags"}


def test_a_release_has_both_images_of_the_dockerfile_signed_and_listed() -> None:
    targets = re.findall(r"^FROM (?:\S+)-dependencies AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert WORKFLOWS["release"]["jobs"]["images"]["strategy"]["matrix"]["target"] == targets
    assert all(
        command in scripts("release")
        for command in ("cosign sign ", "cosign attest ", "cosign sign-blob ", "helm package ", "pip wheel ")
    )
    assert sum(step.get("uses", "").startswith("anchore/sbom-action@") for step in steps("release")) == 2


@pytest.mark.parametrize("name", WORKFLOWS)
def test_rights_are_named_and_few_and_actions_have_a_major_version(name: str) -> None:
    writes = [
        (right, job)
        for job, found in WORKFLOWS[name]["jobs"].items()
        for right, how in found.get("permissions", {}).items()
        if how == "write"
    ]
    expected = {"ci": [], "release": [("id-token", "images"), ("contents", "artifacts"), ("id-token", "artifacts")]}
    assert writes == expected[name]
    assert WORKFLOWS[name]["permissions"] in ({}, {"contents": "read"})
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action)] == []
    assert all("timeout-minutes" in job for job in WORKFLOWS[name]["jobs"].values() if "steps" in job)
