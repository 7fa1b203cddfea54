"""Specs: what is read, what is refused with which reason, and what counts as the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_operator import api, reasons, spec_rules


def spec(**changes: Any) -> dict[str, Any]:
    return {"model": {"uri": "hf://a/b"}} | changes


@pytest.mark.parametrize(
    ("changes", "reason", "path"),
    [
        ({"model": {}}, reasons.INVALID_SPEC, "spec.model"),
        ({"model": {"uri": 1}}, reasons.INVALID_SPEC, "spec.model.uri"),
        ({"model": {"uri": "s3://bucket/m"}}, reasons.UNKNOWN_MODEL_SCHEME, "spec.model.uri"),
        ({"model": {"uri": "model"}}, reasons.UNKNOWN_MODEL_SCHEME, "spec.model.uri"),
        ({"model": {"uri": "hf://only"}}, reasons.INVALID_SPEC, "spec.model.uri"),
        ({"model": {"uri": "pvc:///path"}}, reasons.INVALID_SPEC, "spec.model.uri"),
        ({"model": {"uri": "pvc://claim/../x"}}, reasons.INVALID_SPEC, "spec.model.uri"),
        ({"model": {"uri": "file://relative"}}, reasons.INVALID_SPEC, "spec.model.uri"),
        ({"model": {"uri": "file:///m", "revision": "r"}}, reasons.INVALID_SPEC, "spec.model.revision"),
        ({"model": {"uri": "file:///m", "cache": {"claimName": "c"}}}, reasons.INVALID_SPEC, "spec.model.cache"),
        ({"executor": "Threads"}, reasons.INVALID_SPEC, "spec.executor"),
        ({"ray": {}}, reasons.INVALID_SPEC, "spec.ray"),
        (
            {"executor": "Ray", "parallelism": {"data": 3, "tensor": 4, "workersPerMember": 6}},
            reasons.IMPOSSIBLE_PARALLELISM,
            "spec.parallelism.workersPerMember",
        ),
        ({"executor": "InProcess", "parallelism": {"tensor": 2}}, reasons.IMPOSSIBLE_PARALLELISM, "spec.parallelism"),
        ({"parallelism": {"data": 0}}, reasons.IMPOSSIBLE_PARALLELISM, "spec.parallelism"),
        (
            {"executor": "Simulated", "parallelism": {"data": 3, "workersPerMember": 2}},
            reasons.IMPOSSIBLE_PARALLELISM,
            "spec.parallelism.workersPerMember",
        ),
        (
            {"executor": "Multiprocess", "parallelism": {"workersPerMember": 1}},
            reasons.IMPOSSIBLE_PARALLELISM,
            "spec.parallelism.workersPerMember",
        ),
        ({"context": {"minLength": 9, "maxLength": 8}}, reasons.INVALID_SPEC, "spec.context.minLength"),
        ({"replicas": "two"}, reasons.INVALID_SPEC, "spec.replicas"),
    ],
)
def test_a_bad_spec_is_refused_at_its_path(changes: dict[str, Any], reason: str, path: str) -> None:
    with pytest.raises(api.InvalidSpec) as refused:
        spec_rules.parse_engine(spec(**changes))
    assert (refused.value.reason, refused.value.path) == (reason, path)
    assert refused.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"executor": "Multiprocess", "parallelism": {"tensor": 4, "pipeline": 2}},
        {"executor": "Simulated", "parallelism": {"data": 4, "workersPerMember": 4}},
        {"resources": {"limits": {"nvidia.com/gpu": 1}}},
        {"aFieldOfALaterVersion": {"x": 1}},
    ],
)
def test_a_good_spec_is_read(changes: dict[str, Any]) -> None:
    assert spec_rules.parse_engine(spec(**changes)).members == 1


DEFAULTS = {
    "executor": "Multiprocess",
    "parallelism": {"data": 1, "tensor": 1, "pipeline": 1},
    "apiServers": 1,
    "memory": {"utilizationPercent": 90},
    "context": {"minLength": 1},
    "startup": {"timeoutSeconds": 1800},
    "hang": {},
    "drain": {"timeoutSeconds": 60},
    "template": {},
}


@given(st.sets(st.sampled_from(sorted(DEFAULTS))))
def test_writing_defaults_out_changes_nothing(written: set[str]) -> None:
    plain = spec_rules.parse_engine(spec()).copy()
    other = spec_rules.parse_engine(spec(**{key: DEFAULTS[key] for key in written})).copy()
    assert other == plain
    assert api.revision(other) == api.revision(plain)
    assert msgspec.to_builtins(other) == msgspec.to_builtins(plain)


def test_a_quantity_is_the_same_as_number_and_as_text() -> None:
    number = spec_rules.parse_engine(spec(resources={"limits": {"cpu": 2}, "requests": {"cpu": 1}})).copy()
    text = spec_rules.parse_engine(spec(resources={"limits": {"cpu": "2"}, "requests": {"cpu": "1"}})).copy()
    assert number == text
    assert api.revision(number) == api.revision(text)


def test_the_stored_copy_is_read_back_equal_and_leaves_out_what_does_not_concern_a_running_replica() -> None:
    parsed = spec_rules.parse_engine(
        spec(replicas=3, suspend=True, service={"port": 1}, context={"maxLength": 5}, template={"spec": {}})
    )
    stored = msgspec.to_builtins(parsed.copy())
    assert stored == {"model": {"uri": "hf://a/b"}, "context": {"maxLength": 5}, "template": {"spec": {}}}
    assert api.parse_copy(stored) == parsed.copy()


def test_the_defaults_are_those_of_the_crd() -> None:
    from pathlib import Path

    import yaml

    crd = yaml.safe_load((Path(__file__).parents[3] / "crds" / "inferenceengines.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]

    def defaults(properties: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for key, value in properties.items():
            if value.get("properties") and "default" in value:
                found[key] = defaults(value["properties"])
            elif "default" in value:
                found[key] = value["default"]
        return found

    assert spec_rules.parse_engine(spec(**defaults(schema))) == spec_rules.parse_engine(spec())
    fields = {field.encode_name for field in msgspec.structs.fields(api.EngineSpec)}
    assert fields == set(schema)


@pytest.mark.parametrize(
    ("shape", "members", "ranks"),
    [
        ({"data": 3}, 1, [{0, 1, 2}]),
        ({"data": 2, "workers_per_member": 1}, 2, [{0, 1}, {1}]),
        ({"data": 2, "tensor": 2, "workers_per_member": 1}, 4, [{0, 1}, {0}, {1}, {1}]),
        ({"data": 4, "tensor": 3, "workers_per_member": 4}, 3, [{0, 1, 2, 3}, {1, 2}, {2, 3}]),
    ],
    ids=str,
)
def test_a_member_holds_the_ranks_of_its_workers_and_the_leader_all(
    shape: dict[str, int], members: int, ranks: list[set[int]]
) -> None:
    parallelism = api.Parallelism(**shape)
    assert parallelism.members == members
    assert [parallelism.ranks_of(ordinal) for ordinal in range(members)] == ranks
