"""What is generated from `crds/` is what is checked in."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import crd_schema

GENERATE = Path(__file__).parents[2] / "charts" / "generate.py"
OUTPUTS: dict[Path, str] = runpy.run_path(str(GENERATE))["outputs"]()


@pytest.mark.parametrize("path", OUTPUTS, ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text() == OUTPUTS[path], "run `make generate`"


def test_the_chart_holds_exactly_the_definitions() -> None:
    copies = GENERATE.parent / "enginehouse" / "files" / "crds"
    assert {path.name for path in copies.iterdir()} == {path.name for path in crd_schema.FOLDER.iterdir()}


def test_the_reference_names_every_field_of_a_spec_and_every_rule() -> None:
    text = OUTPUTS[GENERATE.parents[1] / "docs" / "reference" / "api.md"]
    fields = list(crd_schema.fields(crd_schema.schema(crd_schema.kinds()["InferenceEngine"])))
    names = [field.path.removeprefix("spec.") for field in fields if field.path.startswith("spec.") and field.name]
    assert [name for name in names if f"`{name}`" not in text] == []
    rules = [rule["message"] for field in fields if field.path for rule in field.schema.get("x-kubernetes-validations", ())]
    assert [message for message in rules if message not in text] == []
