"""Every rule of the CRDs accepts and refuses on the real API server what its examples in `crd_cases/` say.

Not done here: what else a CRD is for (columns, scale, explain, rows), see `test_crd_behaviour.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client as kubernetes_client

import crd_schema
from crd_schema import Field, Rule

pytestmark = pytest.mark.api

CASES = Path(__file__).parent / "crd_cases"
KINDS = crd_schema.kinds()
ENTRIES = [
    (kind, entry)
    for kind, definition in KINDS.items()
    for entry in yaml.safe_load((CASES / f"{definition['spec']['names']['plural']}.yaml").read_text())
]
SMALLEST = {
    "InferenceEngine": {"model": {"uri": "file:///models/m"}},
    "EngineReplica": {
        "index": 0,
        "epoch": 1,
        "engine": {"model": {"uri": "file:///m"}, "template": {"spec": {"nodeSelector": {}}}},
    },
}
# What else has to be set for a number to be allowed to take its bounds, by the start of its path.
SURROUNDINGS: dict[str, dict[str, Any]] = {
    "spec.parallelism.tensor": {"executor": "Multiprocess"},
    "spec.parallelism.pipeline": {"executor": "Multiprocess"},
    "spec.parallelism.workersPerMember": {"executor": "Ray", "parallelism": {"data": 64}},
    "spec.end.": {"end": {"reason": "MemberFailed", "deadline": "2026-01-01T00:00:00Z"}},
}


def examples(which: str) -> list[Any]:
    return [
        pytest.param(kind, entry, example, id=f"{kind}:{entry['field']}:{entry['says']}:{number}")
        for kind, entry in ENTRIES
        for number, example in enumerate(entry[which])
    ]


def numbers() -> list[Any]:
    return [
        pytest.param(kind, field, id=f"{kind}:{field.path}")
        for kind, definition in KINDS.items()
        for field in crd_schema.fields(crd_schema.schema(definition))
        if field.path.startswith("spec.") and "[]" not in field.path and field.schema.get("type") == "integer"
    ]


def texts() -> list[Any]:
    return [
        pytest.param(kind, field, id=f"{kind}:{field.path}")
        for kind, definition in KINDS.items()
        for field in crd_schema.fields(crd_schema.schema(definition))
        if field.path.startswith("spec.") and "[]" not in field.path and "*" not in field.path and "maxLength" in field.schema
    ]


def merged(base: Any, change: Any) -> Any:
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    result = {key: value for key, value in base.items() if change.get(key, ...) is not None}
    return {**result, **{key: merged(base.get(key), value) for key, value in change.items() if value is not None}}


def nested(path: str, value: object) -> dict[str, Any]:
    """`spec.a.b` and a value as `{"a": {"b": value}}`."""
    for part in reversed(path.split(".")[1:]):
        value = {part: value}
    assert isinstance(value, dict)
    return value


class Objects:
    """Create and change objects of both kinds in one namespace."""

    def __init__(self, api_client: kubernetes_client.ApiClient, namespace: str) -> None:
        self._api = kubernetes_client.CustomObjectsApi(api_client)
        self._namespace = namespace

    def refusals(self, kind: str, example: dict[str, Any]) -> list[tuple[str, str]]:
        """Field and message of everything that the API server holds against the example's last step; nothing when it accepts."""
        where = ("enginehouse.dev", "v1alpha1", self._namespace, KINDS[kind]["spec"]["names"]["plural"])
        name = example.get("name", "example")
        spec = merged(SMALLEST[kind], example.get("spec", {}))
        body = {"apiVersion": "enginehouse.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        if "then" not in example:
            create = partial(self._api.create_namespaced_custom_object, *where, body, field_validation="Strict", dry_run="All")
            return _refusals(create)
        self._api.create_namespaced_custom_object(*where, body, field_validation="Strict")
        change = {"spec": example["then"]}
        content_type = "application/merge-patch+json"
        return _refusals(partial(self._api.patch_namespaced_custom_object, *where, name, change, _content_type=content_type))


def _refusals(request: Callable[[], object]) -> list[tuple[str, str]]:
    try:
        request()
    except kubernetes_client.ApiException as error:
        if error.status != 422:
            raise
        return [
            (re.sub(r"\[\d+\]", "[]", cause["field"]), cause["message"])
            for cause in json.loads(error.body or "")["details"]["causes"]
        ]
    return []


@pytest.fixture
def objects(api_client: kubernetes_client.ApiClient, namespace: str) -> Objects:
    return Objects(api_client, namespace)


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_has_examples(kind: str) -> None:
    entries = [Rule(entry["field"], entry["says"]) for of, entry in ENTRIES if of == kind]
    missing = [
        rule
        for rule in crd_schema.rules(crd_schema.schema(KINDS[kind]))
        if not any(entry.field == rule.field and rule.says.startswith(entry.says) for entry in entries)
    ]
    assert missing == []
    assert all(entry["accepted"] and entry["refused"] for of, entry in ENTRIES if of == kind)


@pytest.mark.parametrize(("kind", "entry", "example"), examples("accepted"))
def test_an_accepted_example_is_accepted(kind: str, entry: dict[str, Any], example: dict[str, Any], objects: Objects) -> None:
    assert objects.refusals(kind, example) == []


@pytest.mark.parametrize(("kind", "entry", "example"), examples("refused"))
def test_a_refused_example_is_refused_by_its_rule(
    kind: str, entry: dict[str, Any], example: dict[str, Any], objects: Objects
) -> None:
    refusals = objects.refusals(kind, example)
    wanted = re.compile(re.escape(entry["field"]).replace(r"\*", ".+"))
    assert any(wanted.fullmatch(field) and entry["says"] in message for field, message in refusals), refusals


@pytest.mark.parametrize(("kind", "field"), numbers())
def test_a_number_may_take_its_bounds_and_nothing_beyond(kind: str, field: Field, objects: Objects) -> None:
    surroundings = next((spec for start, spec in SURROUNDINGS.items() if field.path.startswith(start)), {})
    for bound, beyond in (("minimum", -1), ("maximum", 1)):
        if bound not in field.schema:
            continue
        value = field.schema[bound]
        assert objects.refusals(kind, {"spec": merged(surroundings, nested(field.path, value))}) == []
        refusals = objects.refusals(kind, {"spec": merged(surroundings, nested(field.path, value + beyond))})
        assert any(path == field.path and "should be" in message for path, message in refusals), refusals


@pytest.mark.parametrize(("kind", "field"), texts())
def test_a_text_that_is_too_long_is_refused(kind: str, field: Field, objects: Objects) -> None:
    refusals = objects.refusals(kind, {"spec": nested(field.path, "a" * (field.schema["maxLength"] + 1))})
    assert any(path == field.path and message.startswith("Too long") for path, message in refusals), refusals
