"""Prometheus' own code on the alerts: each fires when it is meant, in its words, and not in the nearest case that is not meant;
and it reads every expression of the dashboard and of an example, and the page's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import page_blocks
import promtool
from alert_cases import CASES, Fires, Silent

# They need no API server; promtool is built with the programs of one.
pytestmark = pytest.mark.api

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/enginehouse/files"
ALERTS = CHART / "alerts.yaml"
RULES = {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
VARIABLES = {"$__rate_interval": "5m", "$namespace": ".*", "$engine": "chat|code"}
"""What Grafana puts there."""


def queries() -> dict[str, str]:
    found: dict[str, str] = {}
    for panel in json.loads((CHART / "dashboard.json").read_text())["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel.get("targets", ())}
    for variable, value in VARIABLES.items():
        found = {name: query.replace(variable, value) for name, query in found.items()}
    scaled = yaml.safe_load((ROOT / "examples/autoscaling/keda.yaml").read_text())
    return found | {"keda.yaml": scaled["spec"]["triggers"][0]["metadata"]["query"]}


def as_rules(*expressions: str) -> list[dict[str, Any]]:
    return [{"name": "queries", "rules": [{"record": f"query:{i}", "expr": found} for i, found in enumerate(expressions)]}]


def test_of_each_alert_there_is_a_case_that_it_is_for_and_one_that_it_is_not_for() -> None:
    assert CASES.keys() == RULES.keys()
    assert all({type(case) for case in cases} == {Fires, Silent} for cases in CASES.values())


@pytest.mark.parametrize(
    ("alert", "case"),
    [pytest.param(alert, case, id=f"{alert}: {case.story}") for alert, cases in CASES.items() for case in cases],
)
def test_an_alert_fires_when_it_is_meant_and_not_before_and_else_never(alert: str, case: Fires | Silent) -> None:
    silent = case.minute if isinstance(case, Fires) else case.minutes
    expected: list[dict[str, Any]] = [{"alertname": alert, "eval_time": f"{minute}m", "exp_alerts": []} for minute in range(silent)]
    if isinstance(case, Fires):
        words = {"summary": case.summary, "description": case.description}
        told = {"exp_labels": case.labels, "exp_annotations": RULES[alert]["annotations"] | words}
        expected.append({"alertname": alert, "eval_time": f"{silent}m", "exp_alerts": [told]})
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    assert promtool.objections_to_tests([{"input_series": series, "alert_rule_test": expected}], rules=ALERTS) == ""


def test_prometheus_takes_the_alerts_as_a_rule_file() -> None:
    assert promtool.objections_to_rules(yaml.safe_load(ALERTS.read_text())["groups"]) == ""


def test_prometheus_reads_every_query_of_the_dashboard_and_of_keda() -> None:
    assert not [query for query in queries().values() if "$" in query]
    assert promtool.objections_to_rules(as_rules(*queries().values())) == ""


def test_prometheus_takes_the_configuration_of_the_page() -> None:
    (page,) = [yaml.safe_load(block.content) for block in page_blocks.blocks("yaml") if "scrape_configs" in block.content]
    assert promtool.objections_to_configuration(page) == ""
    page["scrape_configs"][0]["relabel_configs"][0]["action"] = "kept"
    assert "unknown relabel action" in promtool.objections_to_configuration(page)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("sum by (le) (rate(enginehouse_operator_pass_seconds_bucket[5m])", "unclosed left parenthesis"),
        ("rate(enginehouse_operator_passes_total)", "expected type range vector"),
        ("sum(enginehouse_operator_queue_depth{pod=a})", "unexpected identifier"),
    ],
)
def test_a_broken_query_would_be_refused(broken: str, words: str) -> None:
    assert words in promtool.objections_to_rules(as_rules("up", broken))
