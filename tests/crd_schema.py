"""The CRDs' schemas as flat lists of fields and rules, for tests and for the generated reference.

The one job: walk `crds/*.yaml`.
The invariant kept: every property, list item and map value of a schema appears exactly once.
Not done here: judging them (`tests/unit/test_crd_schema.py`) or asking an API server (`tests/api`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "crds"

Schema = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One place in a schema. `path` reads like `spec.model.uri`, `status.members[].name`, `spec.resources.limits.*`."""

    path: str
    name: str
    """Last part of the path; empty for list items, map values and the root."""
    schema: Schema
    required: bool


@dataclass(frozen=True, order=True)
class Rule:
    """One way to be refused: `field` is where the API server reports it, `says` how its message starts."""

    field: str
    says: str


def load(path: Path) -> Schema:
    """The custom resource definition in a file."""
    loaded: Schema = yaml.safe_load(path.read_text())
    return loaded


def kinds() -> dict[str, Schema]:
    """The definitions by kind, users' kind first."""
    definitions = [load(path) for path in sorted(FOLDER.glob("*.yaml"), reverse=True)]
    return {definition["spec"]["names"]["kind"]: definition for definition in definitions}


def schema(definition: Schema) -> Schema:
    """The schema of its one version."""
    (version,) = definition["spec"]["versions"]
    found: Schema = version["schema"]["openAPIV3Schema"]
    return found


def fields(root: Schema, *, path: str = "", name: str = "", required: bool = False) -> Iterator[Field]:
    """The place itself, then everything below it, in the order of the file. Standard metadata has no schema of ours."""
    yield Field(path, name, root, required)
    for child, below in root.get("properties", {}).items():
        if not path and child == "metadata":
            continue
        inner = f"{path}.{child}" if path else child
        yield from fields(below, path=inner, name=child, required=child in root.get("required", ()))
    if "items" in root:
        yield from fields(root["items"], path=f"{path}[]")
    if "additionalProperties" in root:
        yield from fields(root["additionalProperties"], path=f"{path}.*")


def rules(root: Schema) -> Iterator[Rule]:
    """Everything that refuses a spec, but bounds of numbers and lengths."""
    for field in fields(root):
        if field.path.startswith("status"):
            continue
        if field.required:
            yield Rule(field.path, "Required value")
        if "pattern" in field.schema:
            yield Rule(field.path, "should match")
        if "enum" in field.schema:
            yield Rule(field.path, "Unsupported value")
        if field.schema.get("format") == "date-time":
            yield Rule(field.path, "must be of type date-time")
        for rule in field.schema.get("x-kubernetes-validations", ()):
            yield Rule(field.path + rule.get("fieldPath", "") or "<nil>", rule["message"])
