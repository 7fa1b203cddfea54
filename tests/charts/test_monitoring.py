"""Alerts and dashboard speak of metrics and labels that exist, each alert has a runbook, and the chart ships them when asked to.

The pages about metrics stand for what is exported: `tests/unit/operator/test_documents.py` and `tests/unit/api/test_metrics.py`
hold them to it.
Not done here: whether an expression is what its title says (`test_alerts.py`).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import page_blocks
from enginehouse_operator import names
from localkube import cluster

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "enginehouse"
ALERTS = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
DASHBOARD = json.loads((CHART / "files/dashboard.json").read_text())
RUNBOOKS = (ROOT / "docs/runbooks.md").read_text()

TARGET = {"namespace", "engine", "replica"}
"""Labels that whoever scrapes an engine adds (docs/observability.md)."""


def listed() -> dict[str, set[str]]:
    """Every series that is exported, with the labels that it has at a Prometheus."""
    found: dict[str, set[str]] = {}
    for page, known in (("metrics.md", set()), ("engine-metrics.md", TARGET)):
        text = (ROOT / "docs/reference" / page).read_text()
        for name, labels, kind in re.findall(r"^\| `(\w+)(?:\{(.*)\})?` \| (\w+) \|", text, re.MULTILINE):
            own = known | set(filter(None, labels.split(",")))
            series = [f"{name}_{part}" for part in ("bucket", "sum", "count")] if kind == "histogram" else [name]
            found |= {one: own | {"le"} if one.endswith("_bucket") else own for one in series}
    return found


def rules() -> Iterator[dict[str, Any]]:
    for group in ALERTS["groups"]:
        yield from group["rules"]


def expressions() -> dict[str, str]:
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in DASHBOARD["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel.get("targets", ())}
    (trigger,) = yaml.safe_load((ROOT / "examples/autoscaling/keda.yaml").read_text())["spec"]["triggers"]
    return found | {"keda.yaml": trigger["metadata"]["query"]}


SERIES = listed()
SELECTOR = re.compile(r"\b(enginehouse_\w+)(?:\{([^}]*)\})?")


@pytest.mark.parametrize("expression", expressions().values(), ids=expressions().keys())
def test_an_expression_names_series_that_are_exported_and_labels_that_they_have(expression: str) -> None:
    used = SELECTOR.findall(expression)
    assert used
    for name, selected in used:
        assert name in SERIES
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selected)) <= SERIES[name]
    every = set().union(*(SERIES[name] for name, _ in used))
    for group in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= every


def test_a_name_that_is_not_exported_would_be_found() -> None:
    assert "enginehouse_operator_passes" not in SERIES
    assert {"enginehouse_requests_waiting", "enginehouse_death_to_status_seconds_bucket"} <= SERIES.keys()
    assert SERIES["enginehouse_failures_total"] == {"class"}
    assert SERIES["enginehouse_requests_waiting"] == TARGET
    assert SERIES["enginehouse_http_responses_total"] == TARGET | {"api_server", "path", "status"}


def test_what_pages_configure_elsewhere_names_ports_labels_and_series_that_exist() -> None:
    text = "\n".join(block.content for block in page_blocks.blocks("yaml") if "apiVersion" not in block.content)
    labels = {re.sub(r"\W", "_", label) for label in (names.LABEL_ROLE, names.LABEL_ENGINE, names.LABEL_REPLICA)}
    assert set(re.findall(r"__meta_kubernetes_pod_label_(\w+)", text)) == labels
    assert set(re.findall(r"port_name\], action: keep, regex: (\w+)", text)) == {"metrics", names.HTTP_PORT_NAME}
    assert set(re.findall(r"target_label: (\w+)", text)) == TARGET | {"pod"}, "autoscalers ask for metrics of pods"
    assert re.findall(r"dev_role\], action: keep, regex: (\w+)", text) == [names.LEADER]
    assert set(re.findall(r": (enginehouse_\w+)", text)) <= SERIES.keys()


def test_variables_of_the_dashboard_ask_for_labels_that_exist() -> None:
    queries = [found["query"] for found in DASHBOARD["templating"]["list"] if found["type"] == "query"]
    asked = [match.groups() for query in queries if (match := re.search(r"\((\w+).*, (\w+)\)$", query))]
    assert len(asked) == len(queries) > 0
    assert all(label in SERIES[name] for name, label in asked)


def test_each_alert_has_a_severity_words_and_its_own_section_of_the_runbooks() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE)
    assert [rule["alert"] for rule in rules()] == sections
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}"
    anchors = {section.lower() for section in sections}
    assert set(re.findall(r"\]\(#(\w+)\)", RUNBOOKS)) <= anchors


Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def render(api_cluster: cluster.Cluster) -> Render:
    """The objects about monitoring that helm would send."""

    def run(**monitoring: object) -> list[dict[str, Any]]:
        command = [str(api_cluster.binaries / "helm"), "template", "enginehouse", str(CHART), "--kube-version", "1.34.0"]
        command += ["--set-json", f"monitoring={json.dumps(monitoring)}", "--set", "watchNamespace=ml"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        found = [document for document in yaml.safe_load_all(done.stdout) if document]
        return [one for one in found if one["kind"] in ("PodMonitor", "PrometheusRule", "ConfigMap", "Deployment")]

    return run


@pytest.mark.api
def test_nothing_about_monitoring_is_made_unless_it_is_asked_for(render: Render) -> None:
    (deployment,) = render()
    assert deployment["kind"] == "Deployment"
    assert not any("log-format" in flag for flag in deployment["spec"]["template"]["spec"]["containers"][0]["args"])


@pytest.mark.api
def test_the_chart_ships_monitors_rules_and_dashboard_with_the_labels_that_were_asked_for(render: Render) -> None:
    base = "https://docs.example/runbooks.md"
    asked: dict[str, object] = {"labels": {"release": "prometheus"}, "runbooksUrl": base, "logFormat": "json"}
    found = {one["metadata"]["name"]: one for one in render(podMonitors=True, rules=True, dashboard=True, **asked)}
    deployment = found.pop("enginehouse-operator")
    assert {one["metadata"]["labels"]["release"] for one in found.values()} == {"prometheus"}
    assert json.loads(found["enginehouse-operator-dashboard"]["data"]["enginehouse.json"]) == DASHBOARD
    shipped = found["enginehouse-operator-alerts"]["spec"]["groups"]
    (first, *_) = shipped[0]["rules"]
    assert first["annotations"]["runbook_url"] == f"{base}#{first['alert'].lower()}"
    assert json.loads(json.dumps(shipped).replace(base, "docs/runbooks.md")) == ALERTS["groups"]
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert "--log-format=json" in container["args"]
    own, engines = found["enginehouse-operator-itself"]["spec"], found["enginehouse-operator-engines"]["spec"]
    assert own["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert own["podMetricsEndpoints"] == [{"port": "metrics", "honorLabels": True}]
    assert "metrics" in [port["name"] for port in container["ports"]]
    assert engines["namespaceSelector"] == {"matchNames": ["ml"]}
    assert engines["selector"]["matchLabels"] == {names.LABEL_ROLE: names.LEADER}
    (endpoint,) = engines["podMetricsEndpoints"]
    assert endpoint["port"] == names.HTTP_PORT_NAME
    wanted = {"engine": names.LABEL_ENGINE, "replica": names.LABEL_REPLICA}
    sources = {"__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label): name for name, label in wanted.items()}
    assert {one["sourceLabels"][0]: one["targetLabel"] for one in endpoint["relabelings"]} == sources
