"""What gateways and autoscalers are told in `examples/` is what engines have: labels, port, metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from enginehouse_operator import api, names
from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.pods import PodSettings, pod

ROOT = Path(__file__).parents[3]
SETTINGS = PodSettings(engine_image="engine:1", monitor_image="operator:1", pull_policy="IfNotPresent")
TWO_MEMBERS = api.EngineCopy(
    model=api.Model(uri="file:///m"), executor="Simulated", parallelism=api.Parallelism(data=2, workers_per_member=1)
)


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / name).read_text())
    return found


def member(ordinal: int, *, engine: str) -> dict[str, Any]:
    owner = Owner(kind=names.REPLICA_KIND, name=f"{engine}-0-abc", uid="u", namespace="n", engine=engine)
    return pod(owner, TWO_MEMBERS, name=f"{engine}-0-abc-xyz", ordinal=ordinal, settings=SETTINGS)


def test_the_inference_pool_selects_leaders_in_service_alone_where_they_listen() -> None:
    pool = example("gateway/inferencepool.yaml")
    wanted = pool["spec"]["selector"]["matchLabels"].items()
    leader, worker, other = member(0, engine="smollm2"), member(1, engine="smollm2"), member(0, engine="another")
    assert wanted <= leader["metadata"]["labels"].items()
    assert not wanted <= worker["metadata"]["labels"].items()
    assert not wanted <= other["metadata"]["labels"].items()
    leaves = leader["metadata"]["labels"].items() - {(names.LABEL_SERVING, "true")}
    assert not wanted <= leaves, "a replica that ends is out of the pool with its label"
    engine = next(found for found in leader["spec"]["containers"] if found["name"] == names.ENGINE_CONTAINER)
    (http,) = (port["containerPort"] for port in engine["ports"] if port["name"] == names.HTTP_PORT_NAME)
    assert [port["number"] for port in pool["spec"]["targetPorts"]] == [http]


def test_autoscalers_ask_for_metrics_that_engines_export() -> None:
    exported = set(re.findall(r"^\| `(enginehouse_\w+)", (ROOT / "docs/reference/engine-metrics.md").read_text(), re.MULTILINE))
    (pods,) = example("autoscaling/hpa.yaml")["spec"]["metrics"]
    (trigger,) = example("autoscaling/keda.yaml")["spec"]["triggers"]
    asked = {pods["pods"]["metric"]["name"], *re.findall(r"enginehouse_\w+", trigger["metadata"]["query"])}
    assert asked <= exported
