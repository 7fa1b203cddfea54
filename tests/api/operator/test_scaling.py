"""The HorizontalPodAutoscaler of `examples/`, played by the real controller on a metrics API by script: up and down.

Not the first of its folder: the controller manager learns of kinds that are younger than itself within 30 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_kubelet import now
from scripted_metrics import ScriptedMetrics
from settled_world import is_settled
from stage import Raw, Stage

from localkube import cluster

pytestmark = pytest.mark.api

HPA = yaml.safe_load((Path(__file__).parents[3] / "examples" / "autoscaling" / "hpa.yaml").read_text())
NAME = HPA["spec"]["scaleTargetRef"]["name"]
(METRIC,) = HPA["spec"]["metrics"]
EACH = int(METRIC["pods"]["target"]["averageValue"])
"""So many may wait for each replica."""
SPREAD: Raw = {"executor": "Simulated", "parallelism": {"data": 2, "workersPerMember": 1}}


@contextmanager
def autoscaled(stage: Stage, on: cluster.Cluster, certificates: Path, *, wait: int, **spec: Any) -> Iterator[ScriptedMetrics]:
    """The engine is under its autoscaler, which is told that so many wait, shared by the pods that there are."""
    if not on.owned:
        pytest.skip("a metrics API is not put into a cluster of yours")

    def waiting(selector: str) -> dict[str, int]:
        found = stage._core.list_namespaced_pod(stage.namespace, label_selector=selector).items
        return {pod.metadata.name: wait // len(found) for pod in found}

    asks = METRIC["pods"]["metric"]["name"]
    with ScriptedMetrics(stage.api, stage.namespace, metric=asks, values=waiting, certificates=certificates) as metrics:
        manifest = HPA | {"spec": HPA["spec"] | spec}
        on.kubectl("-n", stage.namespace, "apply", "-f", "-", stdin=yaml.safe_dump(manifest))
        try:
            yield metrics
        except TimeoutError as error:
            said = on.kubectl("-n", stage.namespace, "get", "hpa", NAME, "-o", "jsonpath={.status.conditions}")
            raise AssertionError(f"the autoscaler says {said}") from error


def is_asked_for(stage: Stage, replicas: int) -> bool:
    return bool(stage.engine(NAME)["spec"]["replicas"] == replicas)


def test_an_autoscaler_adds_the_replica_that_those_who_wait_need(
    stage: Stage, api_cluster: cluster.Cluster, tmp_path: Path
) -> None:
    stage.operator()
    stage.apply(NAME, **SPREAD)
    stage.until_condition("Ready", "True", name=NAME)
    with autoscaled(stage, api_cluster, tmp_path, wait=2 * EACH) as metrics:
        stage.until(lambda: is_asked_for(stage, 2), saying="the autoscaler asks for another replica")
        stage.until_condition("Ready", "True", "AllReplicasServe", name=NAME)
        stage.until(lambda: len(stage.pods()) == 4, saying="both members of each")
        seen = len(metrics.asked)
        stage.until(lambda: len(metrics.asked) > seen + 1, saying="the autoscaler has looked at both")
        assert is_asked_for(stage, 2)
    assert set(metrics.asked) == {stage.engine(NAME)["status"]["selector"]}
    scaled = [entry for entry in stage.engine(NAME)["metadata"]["managedFields"] if entry.get("subresource") == "scale"]
    assert [entry["manager"] for entry in scaled] == ["kube-controller-manager"]
    assert scaled[0]["fieldsV1"] == {"f:spec": {"f:replicas": {}}}


def test_an_autoscaler_takes_away_the_replica_that_nobody_waits_for_and_it_drains(
    stage: Stage, api_cluster: cluster.Cluster, tmp_path: Path
) -> None:
    def pods_of(replica: Raw) -> list[Raw]:
        return [pod for pod in stage.pods() if pod["metadata"]["ownerReferences"][0]["uid"] == replica["metadata"]["uid"]]

    def untouched(replica: Raw) -> dict[str, str]:
        return {pod["metadata"]["uid"]: pod["metadata"]["resourceVersion"] for pod in pods_of(replica)}

    stage.operator()
    stage.apply(NAME, **SPREAD, replicas=2, drain={"timeoutSeconds": 60})
    stage.until_condition("Ready", "True", name=NAME)
    first, last = stage.replicas()
    before = untouched(first)
    stage.kubelet.lingers = lambda _: True
    at_once = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    with autoscaled(stage, api_cluster, tmp_path, wait=0, behavior=at_once) as metrics:
        stage.until(lambda: is_asked_for(stage, 1), saying="the autoscaler takes a replica")
        stage.until(lambda: all("deletionTimestamp" in pod["metadata"] for pod in pods_of(last)), saying="the last one drains")
        stage.until_condition("Ready", "True", "AllReplicasServe", name=NAME)
        (end,) = [raw["spec"]["end"] for raw in stage.replicas() if "end" in raw["spec"]]
        assert end["reason"] == "ScaleDown"
        assert datetime.fromisoformat(end["deadline"]) > datetime.fromisoformat(now()), "what is under way has time"
        assert len(pods_of(last)) == 2
        assert not any("enginehouse.dev/serving" in pod["metadata"]["labels"] for pod in pods_of(last)), "and nothing new comes"
        stage.kubelet.lingers = lambda _: False
        stage.until_settled(is_settled(stage, 1, name=NAME))
        seen = len(metrics.asked)
        stage.until(lambda: len(metrics.asked) > seen + 1, saying="the autoscaler has looked at the one")
        assert is_asked_for(stage, 1)
    assert pods_of(last) == []
    assert untouched(first) == before
    assert set(stage.births().values()) == {1}
    assert stage.engine(NAME)["status"]["restarts"] == 0
