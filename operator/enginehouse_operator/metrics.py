"""The operator's metrics, in the format every scraper reads.

Invariant: counters of what happened; nothing is decided by them. Listed in ``docs/reference/metrics.md``.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

PASSES = Counter(
    "enginehouse_operator_passes", "Passes over an engine, by result.", ["result"], registry=REGISTRY
)  # result: settled, acted, refused, unavailable, error
PASS_SECONDS = Histogram("enginehouse_operator_pass_seconds", "Duration of a pass.", registry=REGISTRY)
QUEUE_DEPTH = Gauge("enginehouse_operator_queue_depth", "Engines that wait for a pass.", registry=REGISTRY)
IS_LEADER = Gauge("enginehouse_operator_leader", "1 while this process holds the lease.", registry=REGISTRY)
