"""What an operator's `/metrics` says of a death, of its engine and of its own requests, on a real API server."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted_kubelet import failure, now
from stage import Stage

from unused_port import unused_port

pytestmark = pytest.mark.api


class Operator:
    """One that is scraped."""

    def __init__(self, stage: Stage) -> None:
        self.port = unused_port()
        self.process = stage.operator(metrics_port=self.port)

    def value(self, name: str, **labels: str) -> float | None:
        """None: no such sample, or nobody answers yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except urllib.error.URLError:
            return None
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return next((found.value for found in samples if (found.name, found.labels) == (name, labels)), None)

    def counted(self) -> list[float | None]:
        return [
            self.value("enginehouse_failures_total", **{"class": "Signal"}),
            self.value("enginehouse_death_to_report_seconds_count"),
            self.value("enginehouse_death_to_status_seconds_count", noticed_by="monitor"),
        ]


def test_a_death_is_counted_by_the_operator_that_tells_it_first_and_by_no_later_one(stage: Stage) -> None:
    operator = Operator(stage)
    stage.apply(executor="Simulated", parallelism={"data": 2})
    stage.until_condition("Ready", "True")
    (pod,) = stage.pods()
    told = failure(detectedTime=now(), reportedTime=now())
    stage.kubelet.tell(pod, rank_1="Restarting", incarnation=2, failures=[told])
    stage.until(lambda: operator.counted() == [1.0, 1.0, 1.0], saying="the death is counted")
    assert stage.engine()["status"]["lastFailure"]["rank"] == 1
    took = operator.value("enginehouse_death_to_status_seconds_sum", noticed_by="monitor")
    assert took is not None
    assert 0 < took < 45
    writes = operator.value("enginehouse_operator_api_requests_total", verb="apply", kind="inferenceengines/status", code="200")
    assert writes is not None
    assert writes >= 2
    operator.process.kill()
    later = Operator(stage)
    about = {"namespace": stage.namespace, "engine": "one", "condition": "Ready", "reason": "RankRestarting"}
    stage.until(lambda: later.value("enginehouse_engine_condition", **about) == 0.0, saying="the next one has seen the engine")
    assert later.counted() == [0.0, 0.0, 0.0]
    assert later.value("enginehouse_operator_leader") == 1.0
