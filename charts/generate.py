"""`make generate`: what is generated from `crds/`, the operator's tables and the chart's values, and checked in.

The one job: write the chart's copies of the CRDs and its README, and pages of `docs/reference/`, three of them made by
`tests/reference_pages.py`.
The invariant kept: the output depends on those alone; `tests/charts/test_generated.py` fails when it is not what is checked in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import chart_values
import crd_schema
import reference_pages
from crd_schema import Field, Schema
from enginehouse_operator.failures import POLICIES, Policy

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
    return {
        **copies,
        ROOT / "charts/enginehouse/README.md": chart_readme(),
        ROOT / "docs/reference/api.md": reference(),
        ROOT / "docs/reference/failures.md": failure_classes(),
        ROOT / "docs/reference/events.md": reference_pages.events(),
        ROOT / "docs/reference/labels.md": reference_pages.labels(),
        ROOT / "docs/reference/settings.md": reference_pages.settings(),
    }


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


FAILURES = """# Classes of failures

Generated from `operator/enginehouse_operator/failures.py` by `make generate`. Every record of a failure (`status.lastFailure`,
`EngineReplica.spec.end.failure`, the rows in `EngineReplica.status.members`) has a `class`; how failures are counted and delayed:
[conditions](conditions.md).

- **counts**: in the budget of restarts, `spec.restart.maxRestarts`.
- **delays**: the successor of the replica comes after 0, 10, 20, 40 ... at most 300 seconds. *early*: only when the replica was not
  ten minutes old.
- **final**: trying again cannot help, so there is no successor until a person acts (`Stalled`).
- **in place**: the launcher starts the rank, or API server, again in its pod, if it had served and was not started again within ten
  minutes.

"""

NO_FAILURES = """
No failure, and nothing ends because of it: what keeps a pod from running (`Unschedulable`, `ImageNotAvailable`, `SecretNotFound`,
`ClaimNotFound`, `ContainerNotCreated`, `QuotaExceeded`), what Ray has no place for (`PlacementLacking`), a pod that ended before a
rank needed it (`MemberReplaced`) and a monitor that does not run (`MonitorDown`). They are [reasons](conditions.md) of
conditions, and pass by themselves when the world has what is missing.
"""


def failure_classes() -> str:
    """The table of classes as Markdown."""
    rows = [_policy(name, policy) for name, policy in POLICIES.items()]
    header = "| class | meaning | counts | delays | final | in place |\n|---|---|---|---|---|---|\n"
    return FAILURES + header + "\n".join(rows) + "\n" + NO_FAILURES


def _policy(name: str, policy: Policy) -> str:
    yes = {True: "yes", False: "no"}
    delays = {"always": "yes", "early": "early"}[policy.delays]
    return f"| `{name}` | {policy.meaning} | {yes[policy.counts]} | {delays} | {yes[policy.is_final]} | {yes[policy.in_place]} |"


def chart_readme() -> str:
    """The chart's README: the template with the tables of rights and values."""
    rights = [
        f"| {', '.join(f'`{name}`' for name in rule['resources'])} | {', '.join(rule['verbs'])} |"
        for rule in chart_values.operator_rules()
    ]
    values = [f"| `{value.name}` | `{json.dumps(value.default)}` | {value.comment} |" for value in chart_values.values()]
    text = (ROOT / "charts/README.template.md").read_text()
    text = text.replace("<!-- rights -->", "\n".join(["| of | may |\n|---|---|", *rights]))
    return text.replace("<!-- values -->", "\n".join(["| value | default | meaning |\n|---|---|---|", *values]))


def main() -> None:
    """Write them all."""
    for path, content in outputs().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
