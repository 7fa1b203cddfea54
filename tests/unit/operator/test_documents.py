"""Reasons, Events, template keys and metrics are documented, and nothing else is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric

from enginehouse_operator import act, failures, metrics, reasons
from enginehouse_operator.kubernetes_client import Invalid
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
    assert [name for name in constants if f"reasons.{name}" not in code] == []


def reasons_in(module: str, *calls: str) -> set[str]:
    """Values of the reasons that a module names, all of them or those inside calls of some functions."""
    tree = ast.parse((OPERATOR / f"{module}.py").read_text())
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in calls]
    named = {name for node in (called if calls else [tree]) for name in re.findall(r"reasons\.([A-Z_]+)", ast.unparse(node))}
    return {getattr(reasons, name) for name in named}


def test_the_reasons_of_events_are_those_of_told_steps_deaths_placement_and_stops() -> None:
    steps = reasons_in("plan_engine") - {reasons.SUCCEEDED} | reasons_in("plan_elastic", "ResizeReplica")
    ends_by_themselves = reasons_in("endings")
    deaths = reasons_in("reconcile") & {reasons.RANK_RESTARTING, reasons.API_SERVER_RESTARTING}
    placement = {reasons.PLACED, reasons.PLACEMENT_LACKING}
    invalid = Invalid("making it", status=422, reason="Invalid", message="no")
    refusals = {act.refusal(invalid, is_pod=is_pod).reason for is_pod in (True, False)}
    final = {name for name, policy in failures.POLICIES.items() if policy.is_final}
    refused_specs = reasons_in("spec_rules") | reasons_in("api") | reasons_in("wanted/template")
    stops = refusals | final | refused_specs | {reasons.RESTART_BUDGET_SPENT}
    assert set(reasons.NORMAL_EVENTS) == (steps - ends_by_themselves) | {reasons.PLACED}
    assert set(reasons.WARNING_EVENTS) == ends_by_themselves | deaths | stops | placement - {reasons.PLACED}
    assert len(reasons.NORMAL_EVENTS) + len(reasons.WARNING_EVENTS) == len({*reasons.NORMAL_EVENTS, *reasons.WARNING_EVENTS})


def test_the_conditions_page_has_every_reason_with_its_meaning() -> None:
    assert rows("conditions.md") == reasons.MEANINGS


def test_the_template_page_has_every_key() -> None:
    expected = {f"metadata.{key}": how for key, how in template.METADATA.items()}
    expected |= {f"spec.{key}": how for key, how in template.POD.items()}
    expected |= {f"spec.containers[engine].{key}": how for key, how in template.ENGINE.items()}
    expected |= {key.replace("containers.", "spec.containers[engine]."): why for key, why in template.REFUSED.items()}
    assert rows("template.md") == expected


def labels(collector: Any, family: Metric) -> tuple[str, ...]:
    """Also of a metric that has no series yet."""
    if isinstance(collector, metrics.EngineConditions):
        collector = next(iter(collector.collect()))
    return tuple(collector._labelnames)


def test_the_metrics_page_lists_names_labels_types_and_meanings_of_what_is_exported() -> None:
    exported = set()
    for collector in list(metrics.REGISTRY._collector_to_names):
        for family in collector.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            named = ",".join(labels(collector, family))
            exported.add((f"{name}{{{named}}}" if named else name, family.type, family.documentation))
    page = (REFERENCE / "metrics.md").read_text()
    assert set(re.findall(r"^\| `([^`]+)` \| (\w+) \| (.+) \|$", page, re.MULTILINE)) == exported


def test_a_metric_whose_name_has_a_unit_names_it_in_its_text() -> None:
    families = list(metrics.REGISTRY.collect())
    assert [family.name for family in families if not family.documentation] == []
    assert [found.name for found in families if "_seconds" in found.name and "in seconds" not in found.documentation] == []
