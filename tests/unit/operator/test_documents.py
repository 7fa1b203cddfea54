"""Reasons, template keys and metrics are documented, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

from enginehouse_operator import metrics, reasons
from enginehouse_operator.wanted import template

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
OPERATOR = Path(__file__).parents[3] / "operator" / "enginehouse_operator"


def rows(page: str) -> dict[str, str]:
    found = re.findall(r"^\| `([^`|]+)` \| ([^|]+) \|$", (REFERENCE / page).read_text(), re.MULTILINE)
    return {key: text.strip() for key, text in found}


def test_every_reason_has_a_meaning_and_is_used() -> None:
    constants = {name: value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    assert set(constants.values()) == set(reasons.MEANINGS)
    code = "\n".join(path.read_text() for path in OPERATOR.rglob("*.py") if path.name != "reasons.py")
    by_class = {reasons.MODEL_NOT_FOUND}  # comes from the engine as the class of a failure, and goes on as it is
    assert [name for name, value in constants.items() if f"reasons.{name}" not in code and value not in by_class] == []


def test_the_conditions_page_has_every_reason_with_its_meaning() -> None:
    assert rows("conditions.md") == reasons.MEANINGS


def test_the_template_page_has_every_key() -> None:
    expected = {f"metadata.{key}": how for key, how in template.METADATA.items()}
    expected |= {f"spec.{key}": how for key, how in template.POD.items()}
    expected |= {f"spec.containers[engine].{key}": how for key, how in template.ENGINE.items()}
    expected |= {key.replace("containers.", "spec.containers[engine]."): why for key, why in template.REFUSED.items()}
    assert rows("template.md") == expected


def test_the_metrics_page_has_every_metric() -> None:
    page = (REFERENCE / "metrics.md").read_text()
    for family in metrics.REGISTRY.collect():
        assert f"`{family.name}" in page
