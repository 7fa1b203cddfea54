"""`make generate`: what is generated from `crds/` and checked in.

The one job: write the chart's copies of the CRDs and `docs/reference/api.md`.
The invariant kept: the output depends on `crds/` alone; `tests/charts/test_generated.py` fails when it is not what is checked in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import crd_schema
from crd_schema import Field, Schema

ROOT = Path(__file__).parents[1]
HEADER = """# API reference

Generated from `crds/` by `make generate`. Group `enginehouse.dev`, version `v1alpha1`; `kubectl explain ie.spec` shows the same.
What the reasons of the conditions mean: [conditions](conditions.md); the keys of `template`: [template](template.md).

An integer has 32 bits unless it says otherwise; `[]` is a list. **Bold** fields have to be given.
"""
COLUMNS = "| field | type | default | meaning |\n|---|---|---|---|"


def outputs() -> dict[Path, str]:
    """Every generated file with its content."""
    copies = {
        ROOT / "charts/enginehouse/files/crds" / source.name: source.read_text() for source in crd_schema.FOLDER.glob("*.yaml")
    }
    return {**copies, ROOT / "docs/reference/api.md": reference()}


def reference() -> str:
    """The API reference as Markdown."""
    places: dict[str, str] = {}
    parts = [HEADER]
    for kind, definition in crd_schema.kinds().items():
        root = crd_schema.schema(definition)
        names = definition["spec"]["names"]
        parts.append(f"## {kind}\n\n{root['description']} Short name `{names['shortNames'][0]}`.\n")
        for part in ("spec", "status"):
            part_schema = root["properties"][part]
            rows = "\n".join(_rows(part_schema, kind=kind, path=part, places=places))
            parts.append(f"### {kind}.{part}\n\n{part_schema['description']}\n\n{COLUMNS}\n{rows}\n")
            if part == "spec":
                rules = sorted(_rules(part_schema))
                parts.append("Rules:\n\n" + "\n".join(f"- `{rule.field}` {rule.says}" for rule in rules) + "\n")
    return "\n".join(parts)


def _rules(part_schema: Schema) -> Iterator[crd_schema.Rule]:
    for field in crd_schema.fields(part_schema, path="spec"):
        for rule in field.schema.get("x-kubernetes-validations", ()):
            yield crd_schema.Rule(field.path + rule.get("fieldPath", ""), rule["message"])


def _rows(part_schema: Schema, *, kind: str, path: str, places: dict[str, str]) -> Iterator[str]:
    """One table row per field. What has the same fields as something above refers to it; `places` remembers where that is."""
    hidden: list[str] = []
    for field in crd_schema.fields(part_schema, path=path):
        if not field.name or field.path.startswith(tuple(hidden)) or field.path == path:
            continue
        inside = field.schema.get("items", field.schema)
        description = field.schema["description"]
        shape = json.dumps(inside.get("properties", {}), sort_keys=True)
        if len(inside.get("properties", ())) > 2:
            if shape in places:
                description += f" Its fields are those of `{places[shape]}`."
                hidden.append(field.path + ("[]." if inside is not field.schema else "."))
            else:
                places[shape] = f"{kind}.{field.path}"
        name = f"**`{field.path.removeprefix(path + '.')}`**" if field.required else f"`{field.path.removeprefix(path + '.')}`"
        yield f"| {name} | {_type(field)} | {_default(field)} | {description} |"


def _type(field: Field) -> str:
    schema = field.schema
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "items" in schema:
        keys = ", ".join(schema.get("x-kubernetes-list-map-keys", ()))
        return f"list by {keys}" if keys else "list"
    if "additionalProperties" in schema:
        return "map of quantities"
    if schema.get("format") == "date-time":
        return "time"
    if schema["type"] == "integer":
        size = " (64 bits)" if schema["format"] == "int64" else ""
        return f"integer{size}" + (
            f", {schema['minimum']} to {schema['maximum']}" if {"minimum", "maximum"} <= schema.keys() else ""
        )
    return str(schema["type"])


def _default(field: Field) -> str:
    default = field.schema.get("default")
    return "" if default is None or isinstance(default, dict) else f"`{json.dumps(default).strip(chr(34))}`"


def main() -> None:
    """Write them all."""
    for path, content in outputs().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
