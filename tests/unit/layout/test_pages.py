"""What pages promise: each is linked, what they prove has a test, and their manifests and commands name what exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import chart_values
import crd_schema
from enginehouse_operator import names, spec_rules
from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.pods import Images, pod
from localkube import binaries

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "charts" / "enginehouse" / "README.md", *sorted(DOCS.rglob("*.md"))]
ENGINE = crd_schema.schema(crd_schema.kinds()["InferenceEngine"])
OWN_FIELDS = {field.path for field in crd_schema.fields(ENGINE)}
NOT_OURS = ("spec.template.", "spec.resources.limits.", "spec.resources.requests.")
"""What pods hold, and names of resources."""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Page and content of each code block."""
    for page in PAGES:
        for content in re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            yield str(page.relative_to(ROOT)), content


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for page, content in blocks("yaml"):
        for number, document in enumerate(yaml.safe_load_all(content)):
            yield f"{page}-{number}", document


MANIFESTS = [(page, document) for page, document in documents() if document.get("kind") == "InferenceEngine"]
PARTS = [(page, document) for page, document in documents() if document.keys() == {"spec"}]


def paths(value: object, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{key}"
            yield from paths(inner, f"{path}.{key}")


def read(spec: dict[str, Any]) -> None:
    """As the operator does, with the pod that it would make: raises InvalidSpec."""
    owner = Owner(kind=names.REPLICA_KIND, name="e-0-abc", uid="u", namespace="n", engine="e")
    images = Images(engine="engine:1", monitor="operator:1", pull_policy="IfNotPresent")
    pod(owner, spec_rules.parse_engine(spec).copy(), name="e-0-abc-xyz", ordinal=0, images=images)


def unknown_fields(spec: dict[str, Any]) -> list[str]:
    return [path for path in paths(spec, "spec") if path not in OWN_FIELDS and not path.startswith(NOT_OURS)]


def test_the_front_page_links_every_page() -> None:
    front = DOCS / "README.md"
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", front.read_text())}
    pages = [page for page in DOCS.rglob("*.md") if page != front]
    assert [str(page.relative_to(DOCS)) for page in pages if not {page, page.parent} & (linked - {DOCS})] == []


@pytest.mark.parametrize("document", [document for _, document in MANIFESTS], ids=[page for page, _ in MANIFESTS])
def test_a_manifest_in_a_page_is_an_engine_that_the_operator_reads(document: dict[str, Any]) -> None:
    assert document["apiVersion"] == "enginehouse.dev/v1alpha1"
    assert unknown_fields(document["spec"]) == []
    read(document["spec"])


@pytest.mark.parametrize("document", [document for _, document in PARTS], ids=[page for page, _ in PARTS])
def test_a_part_of_a_manifest_in_a_page_has_fields_of_the_schema(document: dict[str, Any]) -> None:
    assert unknown_fields(document["spec"]) == []
    read({"model": {"uri": "file:///model"}} | document["spec"])


def test_a_misspelt_field_would_be_found() -> None:
    assert unknown_fields({"replica": 2, "resources": {"limits": {"memory": "1Gi"}}}) == ["spec.replica"]


def test_commands_in_pages_name_what_exists() -> None:
    values = {value.name for value in chart_values.values()}
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for page, content in blocks("console"):
        for command in re.findall(r"^\$ (.*(?:\\\n.*)*)$", content, re.MULTILINE):
            named_files = re.findall(r"(?:-f|--filename) ((?:examples|crds|charts)/\S+|crds/)", command)
            wrong += [f"{page}: {path}" for path in named_files if not (ROOT / path).exists()]
            named_values = re.findall(r"--set ([A-Za-z.]+)=", command)
            foreign = [name for name in named_values if name not in values and not name.startswith("monitoring.labels.")]
            wrong += [f"{page}: --set {name}" for name in foreign]
            wrong += [f"{page}: make {verb}" for verb in re.findall(r"^make ([a-z-]+)", command) if verb not in verbs]
    assert wrong == []


def proofs() -> Iterator[tuple[str, list[str], list[str]]]:
    """Promise, files and tests of each row of the table of proof."""
    for row in re.findall(r"^\| (.+) \|$", (DOCS / "proof.md").read_text(), re.MULTILINE):
        promise, place, tests = (cell.strip() for cell in f"{row} ".split("|"))
        if promise not in ("promise", "version") and not place.startswith("not shown"):
            yield promise, re.findall(r"`([^`]+)`", place), re.findall(r"`([^`]+)`", tests)


@pytest.mark.parametrize(("files", "tests"), [row[1:] for row in proofs()], ids=[row[0] for row in proofs()])
def test_every_proof_is_there(files: list[str], tests: list[str]) -> None:
    trees = [ast.parse((ROOT / file).read_text()) for file in files]
    defined = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert tests
    assert set(tests) - defined == set()


def test_pages_name_the_kubernetes_that_is_tested() -> None:
    for page in ("guides/install.md", "proof.md"):
        assert set(re.findall(r"v1\.\d+\.\d+", (DOCS / page).read_text())) == set(binaries.KUBERNETES_VERSIONS.values())
