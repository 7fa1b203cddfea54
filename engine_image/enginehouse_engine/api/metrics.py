"""What ``/metrics`` says: of all API servers of a replica, whichever one is asked.

They listen on one port, so a scrape reaches any one of them. Each counts in a memory-mapped file of its own in a folder that all
read (the multi-process mode of prometheus_client).
Invariant: names and meanings are listed in ``docs/reference/engine-metrics.md`` (a test compares), known series exist from the
start, no label can take unboundedly many values, and no counter of a server falls: one that is started again counts on in its
predecessor's file. Figures of the cores come with every step to every server and are only passed on here; a new core counts anew.
Does not measure: ``generation.py`` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from enginehouse_engine.api.ranks import Ranks

FINISH_REASONS: Final = ("stop", "length", "error", "abort")
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_BETWEEN_TOKENS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
_WHOLE: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)

GATEWAY_NAMES: Final = {
    "enginehouse_requests_waiting": "vllm:num_requests_waiting",
    "enginehouse_requests_running": "vllm:num_requests_running",
    "enginehouse_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
}
"""Gateways and autoscalers read these names unless they are configured otherwise, so the same figures carry them too."""


class Metrics:
    """Counters and histograms to observe, and the text of a scrape; one in a process.

    ``directory`` is the same for all API servers; what this one counts carries its number as label ``api_server``.
    """

    def __init__(self, ranks: Ranks, *, api_server: int, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        # The library has no other way to be told; it names a file by the number so that a successor goes on in it.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
        values.ValueClass = values.MultiProcessValue(lambda: api_server)
        self._registry = CollectorRegistry()
        MultiProcessCollector(self._registry, path=str(directory))
        self._server = str(api_server)
        answers = self._counter("enginehouse_requests", "Answers that ended, by reason", "finish_reason")
        self.answers = {reason: answers.labels(self._server, reason) for reason in FINISH_REASONS}
        self.prompt_tokens = self._counter("enginehouse_prompt_tokens", "Tokens of prompts given to engine cores").labels(
            self._server
        )
        self.generation_tokens = self._counter("enginehouse_generation_tokens", "Tokens generated").labels(self._server)
        self.first_token = self._histogram(
            "enginehouse_time_to_first_token_seconds",
            "From the arrival of a request to an answer's first token, in seconds",
            _FIRST_TOKEN,
        )
        self.between_tokens = self._histogram(
            "enginehouse_inter_token_latency_seconds",
            "Between a token of an answer and the one before, in seconds",
            _BETWEEN_TOKENS,
        )
        self.whole = self._histogram(
            "enginehouse_request_duration_seconds",
            "From the arrival of a request to the end of its last answer, in seconds",
            _WHOLE,
        )
        self._responses = self._counter("enginehouse_http_responses", "HTTP responses by path and status", "path", "status")
        self._registry.register(_RankFigures(ranks))

    def responded(self, path: str, status: int) -> None:
        """Count a response; ``path`` is a known one or ``other``."""
        self._responses.labels(self._server, path, str(status)).inc()

    def scrape(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["api_server", *labels], registry=None)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, ["api_server"], buckets=buckets, registry=None).labels(self._server)


class _RankFigures(Collector):
    """Figures of all ranks as of their last step, computed when asked for."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def collect(self) -> Iterator[Metric]:
        ranks = list(self._ranks)
        used = sum(rank.stats.kv_blocks_used for rank in ranks)
        blocks = sum(rank.hello.kv_blocks for rank in ranks)
        gauges = {
            "enginehouse_requests_waiting": ("Sequences that wait for their first step", sum(rank.stats.waiting for rank in ranks)),
            "enginehouse_requests_running": ("Sequences that are being computed", sum(rank.stats.running for rank in ranks)),
            "enginehouse_kv_cache_usage_ratio": ("Share of the KV cache's blocks in use, 0 to 1", used / blocks if blocks else 0.0),
            "enginehouse_kv_cache_blocks": ("Blocks of the KV cache", blocks),
            "enginehouse_ranks_serving": ("Data-parallel ranks in service", len(ranks)),
            "enginehouse_max_context_length_tokens": (
                "Tokens of prompt and answer together that are accepted; 0 before the first rank serves",
                self._ranks.max_context_length or 0,
            ),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value)
            if alias := GATEWAY_NAMES.get(name):
                yield GaugeMetricFamily(alias, f"Same as {name}", value)
        block_size = min((rank.hello.block_size for rank in ranks), default=0)
        labels = {"block_size": str(block_size), "num_gpu_blocks": str(blocks)}
        yield InfoMetricFamily("enginehouse_cache_config", "Tokens in a block of the KV cache, and blocks", labels)
        yield InfoMetricFamily("vllm:cache_config", "Same as enginehouse_cache_config_info", labels)
        counters = {
            "enginehouse_preemptions": ("Sequences set back to make room for others", "preemptions"),
            "enginehouse_prefix_cache_hit_tokens": ("Tokens of prompts whose keys and values were reused", "cached_tokens"),
            "enginehouse_engine_steps": ("Steps computed", "steps"),
            "enginehouse_engine_model_seconds": ("Seconds in which the model computed", "model_seconds"),
            "enginehouse_engine_outside_model_seconds": ("Seconds between steps while there was work", "outside_model_seconds"),
        }
        for name, (text, field) in counters.items():
            family = CounterMetricFamily(name, text, labels=["rank"])
            for rank in ranks:
                family.add_metric([str(rank.hello.rank)], getattr(rank.stats, field))
            yield family
