"""The operator's metrics, in the format every scraper reads.

Invariant: counters of what happened; nothing is decided by them. Names, labels and meanings are those of
``docs/reference/metrics.md`` (a test compares), and no label can take unboundedly many values: an engine's series go with it.
Does not find out what happened: whoever acts counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .failures import POLICIES, UNKNOWN, Failure, seconds_between

disable_created_metrics()  # a series more for each of a counter; scrapers see a restart by its fall
REGISTRY = CollectorRegistry()

PASSES = Counter(
    "enginehouse_operator_passes",
    "Passes over an engine: settled, acted, refused (the API server said no), unavailable (it did not answer), error (a bug).",
    ["result"],
    registry=REGISTRY,
)
PASS_SECONDS = Histogram("enginehouse_operator_pass_seconds", "Duration of a pass, in seconds.", registry=REGISTRY)
QUEUE_DEPTH = Gauge("enginehouse_operator_queue_depth", "Engines that wait for a pass.", registry=REGISTRY)
IS_LEADER = Gauge("enginehouse_operator_leader", "1 while this process holds the lease, else 0.", registry=REGISTRY)
API_REQUESTS = Counter(
    "enginehouse_operator_api_requests",
    "Requests to the Kubernetes API by verb, kind and HTTP status; code 0: no answer. All verbs but get, list and try (a dry run) "
    "write. Watches are not counted.",
    ["verb", "kind", "code"],
    registry=REGISTRY,
)
FAILURES = Counter("enginehouse_failures", "Failures that became known, each once, by class.", ["class"], registry=REGISTRY)
DEATH_TO_REPORT_SECONDS = Histogram(
    "enginehouse_death_to_report_seconds",
    "From the moment a monitor noticed a failure to its report of it with the cause, in seconds: detectedTime to reportedTime.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    registry=REGISTRY,
)
DEATH_TO_STATUS_SECONDS = Histogram(
    "enginehouse_death_to_status_seconds",
    "From the moment a failure was noticed to the moment the engine's status tells it, in seconds; noticed_by monitor, or "
    "kubernetes (a pod's status, whose times are whole seconds).",
    ["noticed_by"],
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 300.0),
    registry=REGISTRY,
)
NOTICED_BY: Final = ("monitor", "kubernetes")


class EngineConditions(Collector):
    """The conditions that the operator looked at last, of each engine that there is; computed when asked for."""

    _VALUES: Final = {"True": 1.0, "False": 0.0}

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[Mapping[str, Any]]] = {}

    def tell(self, namespace: str, engine: str, conditions: Iterable[Mapping[str, Any]]) -> None:
        self._known[namespace, engine] = [found for found in conditions if found["status"] in self._VALUES]

    def forget(self, namespace: str, engine: str) -> None:
        """It is gone."""
        self._known.pop((namespace, engine), None)

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "enginehouse_engine_condition",
            "Conditions of each engine: 1 True, 0 False, absent while Unknown.",
            labels=["namespace", "engine", "condition", "reason"],
        )
        for (namespace, engine), conditions in self._known.items():
            for found in conditions:
                family.add_metric([namespace, engine, found["type"], found["reason"]], self._VALUES[found["status"]])
        yield family


ENGINES = EngineConditions()
REGISTRY.register(ENGINES)

# What is known beforehand starts at 0, so that the first of each shows as an increase.
for _result in ("settled", "acted", "refused", "unavailable", "error"):
    PASSES.labels(_result)
for _class in POLICIES:
    FAILURES.labels(_class)
for _somebody in NOTICED_BY:
    DEATH_TO_STATUS_SECONDS.labels(_somebody)


def count_failure(failure: Failure, *, now: datetime) -> None:
    """A failure that the status tells for the first time, ``now``. Clocks of two machines differ: nothing is negative."""
    FAILURES.labels(failure.class_ if failure.class_ in POLICIES else UNKNOWN).inc()
    noticed, reported = failure.detected_time, failure.reported_time
    if noticed is None:
        return
    told_by = NOTICED_BY[0] if reported is not None else NOTICED_BY[1]
    DEATH_TO_STATUS_SECONDS.labels(told_by).observe(max(0.0, seconds_between(noticed, now)))
    if reported is not None:
        DEATH_TO_REPORT_SECONDS.observe(max(0.0, seconds_between(noticed, reported)))
