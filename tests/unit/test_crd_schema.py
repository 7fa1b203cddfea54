"""The CRDs read well and follow the house's API rules; no API server needed."""

from __future__ import annotations

import re

import pytest

import crd_schema
from crd_schema import Field

KINDS = crd_schema.kinds()
FIELDS = {
    f"{kind}:{field.path or 'root'}": field
    for kind, definition in KINDS.items()
    for field in crd_schema.fields(crd_schema.schema(definition))
}
SPEC_FIELDS = {name: field for name, field in FIELDS.items() if field.path.startswith("spec")}
ROW_FIELDS = {name: field for name, field in FIELDS.items() if ".members" in field.path}
UNITS = {"Seconds": "second", "Percent": "percent", "Length": "token", "Time": "RFC 3339", "Bytes": "byte", "Blocks": "block"}
# A keyword in the wrong place is ignored without a word by the API server.
KEYWORDS = {
    "type", "format", "description", "default", "nullable", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "maxItems", "maxProperties", "required", "properties", "items", "additionalProperties", "x-kubernetes-validations",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip
MESSAGES = [rule["message"] for field in FIELDS.values() for rule in field.schema.get("x-kubernetes-validations", ())]


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS.keys())
def test_every_field_is_described(field: Field) -> None:
    description = field.schema.get("description", "")
    assert description.endswith("."), "a description is one or more sentences"
    assert field.name in ("", description.split()[0]), "a description starts with the field's name"


@pytest.mark.parametrize("field", SPEC_FIELDS.values(), ids=SPEC_FIELDS.keys())
def test_quantities_say_their_unit(field: Field) -> None:
    unit = next((unit for suffix, unit in UNITS.items() if field.name.endswith(suffix)), "")
    assert unit in field.schema["description"]


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS.keys())
def test_every_field_is_bounded(field: Field) -> None:
    schema = field.schema
    assert schema.keys() <= KEYWORDS
    free = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-int-or-string")
    kind = schema.get("type", "free" if free else "missing")
    if kind == "string" and field.name not in ("apiVersion", "kind"):
        assert {"maxLength", "enum", "format"} & schema.keys()
    if kind == "integer":
        # Exit codes and signals are whatever the kernel says; a status is never refused for a large number.
        assert "minimum" in schema or field.name in ("exitCode", "signal")
        assert "maximum" in schema or not field.path.startswith("spec") or "failure" in field.path or field.name == "epoch"
        assert schema["format"] in ("int32", "int64")
    if kind == "array":
        assert schema["x-kubernetes-list-type"] in ("map", "atomic", "set")
        assert "maxItems" in schema
    if "additionalProperties" in schema:
        assert "maxProperties" in schema
    assert kind in ("string", "integer", "boolean", "array", "object", "free"), "no floats"


@pytest.mark.parametrize("field", ROW_FIELDS.values(), ids=ROW_FIELDS.keys())
def test_rows_take_words_and_fields_of_later_versions(field: Field) -> None:
    assert "enum" not in field.schema
    assert "pattern" not in field.schema
    if field.schema["type"] == "object":
        assert field.schema["x-kubernetes-preserve-unknown-fields"]


@pytest.mark.parametrize("message", MESSAGES)
def test_rules_say_what_must_be(message: str) -> None:
    assert re.match(r"(metadata\.name )?must ", message)


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_fits_an_annotation_of_kubectl_apply(kind: str) -> None:
    names = KINDS[kind]["spec"]["names"]
    assert (crd_schema.FOLDER / f"{names['plural']}.yaml").stat().st_size < 64 * 1024
    assert names["categories"] == ["enginehouse"]


@pytest.mark.parametrize(
    ("path", "keys"),
    [("conditions", ["type"]), ("members", ["name"]), ("members[].ranks", ["rank"]), ("members[].placement", ["rank"]),
     ("members[].placement[].bundles", ["index"])],
)  # fmt: skip
def test_lists_of_things_are_maps(path: str, keys: list[str]) -> None:
    found = {field.path: field.schema for field in crd_schema.fields(crd_schema.schema(KINDS["EngineReplica"]))}
    assert found[f"status.{path}"]["x-kubernetes-list-map-keys"] == keys


def test_a_condition_and_a_failure_have_one_shape_wherever_they_stand() -> None:
    engine, replica = (
        {field.path: field.schema for field in crd_schema.fields(crd_schema.schema(KINDS[kind]))}
        for kind in ("InferenceEngine", "EngineReplica")
    )
    assert engine["status.conditions[]"] == replica["status.conditions[]"]
    last = engine["status.lastFailure"]["properties"]
    assert replica["spec.failures[]"]["properties"] == last
    assert replica["spec.end.failure"]["properties"] == last
    known_by_its_place = ("replica", "replicaUID", "revision", "member")
    row = {name: schema for name, schema in last.items() if name not in known_by_its_place}
    assert replica["status.members[].failures[]"]["properties"] == row
