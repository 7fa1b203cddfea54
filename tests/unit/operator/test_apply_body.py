"""An apply is read as YAML, and is meant as JSON."""

from __future__ import annotations

import json

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from enginehouse_operator.apply_body import apply_body


@given(st.text())
@example("🤗 beyond U+FFFF")
@example("deleted \x7f, next line \x85, separators \u2028 \u2029, a mark \ufeff, none \uffff \U0001ffff, nothing \x00")
@example(r"no escape: \ud83e\udd17 \\u007f \n")
@example("a \"quoted\" 'one': [ü, ✓] # {no} comment\n- \t& *")
def test_an_apply_says_the_same_in_yaml_and_in_json(text: str) -> None:
    intent = {"message": text, "list": [text, 1, None, True, {"key": text}]}
    body = apply_body(intent)
    assert yaml.safe_load(body.encode()) == intent
    assert json.loads(body.encode()) == intent


def test_what_no_object_can_hold_is_replaced() -> None:
    assert yaml.safe_load(apply_body({"name": "file-\udcff"}).encode()) == {"name": "file-\ufffd"}
