"""Objects as the CRDs' schemas allow them, for property tests: every field that there is, with values at its bounds and odd ones.

Strings keep to their pattern and bounds of numbers hold; rules that need more than one field (CEL) may be broken.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from crd_schema import Schema, kinds, schema

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
"""JSON."""
_TIMES = st.sampled_from(
    ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123456+05:30", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]
)
"""The first and the last are times that have no UTC in Python."""
_MOST_ITEMS = 2


def specs(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Of ``spec``."""
    found: st.SearchStrategy[dict[str, Any]] = values(schema(kinds()[kind])["properties"]["spec"])
    return found


def statuses(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Of ``status``."""
    found: st.SearchStrategy[dict[str, Any]] = values(schema(kinds()[kind])["properties"]["status"])
    return found


def values(part: Schema) -> st.SearchStrategy[Any]:
    """What this part of a schema allows."""
    found = _values(part)
    return st.none() | found if part.get("nullable") else found


def _values(part: Schema) -> st.SearchStrategy[Any]:
    if "enum" in part:
        return st.sampled_from(part["enum"])
    if part.get("x-kubernetes-int-or-string"):
        return st.integers(0, 9) | st.sampled_from(["1", "500m", "2Gi", "1e3"])
    match part.get("type"):
        case "object":
            return _objects(part)
        case "array":
            return st.lists(values(part["items"]), max_size=min(part.get("maxItems", _MOST_ITEMS), _MOST_ITEMS))
        case "integer":
            most = 2**31 - 1 if part.get("format") == "int32" else 2**53
            return st.integers(part.get("minimum", -most), part.get("maximum", most))
        case "boolean":
            return st.booleans()
        case "string":
            return _texts(part)
    return ANYTHING


def _texts(part: Schema) -> st.SearchStrategy[str]:
    if part.get("format") == "date-time":
        return _TIMES
    if "pattern" in part:
        return st.from_regex(part["pattern"], fullmatch=True).map(lambda text: text[: part.get("maxLength")])
    return st.text(min_size=part.get("minLength", 0), max_size=min(part.get("maxLength", 12), 12))


def _objects(part: Schema) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" not in part:
        inner = values(part["additionalProperties"]) if "additionalProperties" in part else ANYTHING
        return st.dictionaries(st.text(max_size=5), inner, max_size=2)
    fields = {name: values(below) for name, below in part["properties"].items()}
    required = {name: fields.pop(name) for name in part.get("required", ())}
    return st.fixed_dictionaries(required, optional=fields)
