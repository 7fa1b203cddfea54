"""The HorizontalPodAutoscaler of `examples/`, played by the real controller on a metrics API by script.

Not the first of its folder: the controller manager learns of kinds that are younger than itself within 30 s.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from scripted_metrics import ScriptedMetrics
from stage import Stage

from localkube import cluster

pytestmark = pytest.mark.api

HPA = Path(__file__).parents[3] / "examples" / "autoscaling" / "hpa.yaml"


def test_an_autoscaler_adds_the_replica_that_those_who_wait_need(
    stage: Stage, api_cluster: cluster.Cluster, tmp_path: Path
) -> None:
    if not api_cluster.owned:
        pytest.skip("a metrics API is not put into a cluster of yours")
    spec = yaml.safe_load(HPA.read_text())["spec"]
    name, (metric,) = spec["scaleTargetRef"]["name"], spec["metrics"]
    each = int(metric["pods"]["target"]["averageValue"])

    def waiting(selector: str) -> dict[str, int]:
        """Twice what one replica may have, shared by those that there are."""
        found = stage._core.list_namespaced_pod(stage.namespace, label_selector=selector).items
        return {pod.metadata.name: 2 * each // len(found) for pod in found}

    stage.operator()
    stage.apply(name, executor="Simulated", parallelism={"data": 2, "workersPerMember": 1})
    stage.until_condition("Ready", "True", name=name)
    asks = metric["pods"]["metric"]["name"]
    with ScriptedMetrics(stage.api, stage.namespace, metric=asks, values=waiting, certificates=tmp_path) as metrics:
        api_cluster.kubectl("-n", stage.namespace, "apply", "-f", str(HPA))

        def conditions() -> str:
            return api_cluster.kubectl("-n", stage.namespace, "get", "hpa", name, "-o", "jsonpath={.status.conditions}")

        try:
            stage.until(lambda: stage.engine(name)["spec"]["replicas"] == 2, saying="the autoscaler asks for another replica")
        except TimeoutError as error:
            raise AssertionError(f"the autoscaler says {conditions()}") from error
        stage.until_condition("Ready", "True", "AllReplicasServe", name=name)
        assert len(stage.pods()) == 4
        seen = len(metrics.asked)
        stage.until(lambda: len(metrics.asked) > seen + 1, saying="the autoscaler has looked at both")
        assert stage.engine(name)["spec"]["replicas"] == 2
    assert set(metrics.asked) == {stage.engine(name)["status"]["selector"]}
    scaled = [entry for entry in stage.engine(name)["metadata"]["managedFields"] if entry.get("subresource") == "scale"]
    assert [entry["manager"] for entry in scaled] == ["kube-controller-manager"]
    assert scaled[0]["fieldsV1"] == {"f:spec": {"f:replicas": {}}}
