"""The page about metrics lists exactly what a server exports, and the figures are those of the requests."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from enginehouse_engine.protocol import Outputs, StepStats, encode

from .conftest import ApiServer, Core, eventually

PAGE = Path(__file__).parents[3] / "docs/reference/engine-metrics.md"


def _scrape(server: ApiServer) -> dict[str, float]:
    """Samples by name and labels."""
    text = httpx.get(server.url + "/metrics").text
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_page_lists_what_is_exported(http: httpx.Client) -> None:
    http.get("/health")
    text = http.get("/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in kinds}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels[name].update(*(sample.labels.keys() - {"le"} for sample in family.samples))
    listed = re.findall(r"^\| `([a-z_:]+)(?:\{(.*)\})?` \| (gauge|counter|histogram) \|", PAGE.read_text(), re.MULTILINE)
    assert {name: (kind, set(filter(None, named.split(",")))) for name, named, kind in listed} == {
        name: (kind, labels[name]) for name, kind in kinds.items()
    }


def test_every_metric_has_a_text_that_names_the_unit_in_its_name(http: httpx.Client) -> None:
    http.get("/health")
    text = http.get("/metrics").text
    exported, texts = (
        set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)),
        dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE)),
    )
    assert texts.keys() == exported
    units = [(name, unit) for name in exported for unit in ("seconds", "tokens", "blocks") if f"_{unit}" in name]
    assert [name for name, unit in units if unit not in texts[name].lower()] == []


def test_figures_of_requests_and_ranks(server: ApiServer, core: Core, http: httpx.Client) -> None:
    before = _scrape(server)
    answer = http.post("/v1/completions", json={"model": "sim", "prompt": "hello", "max_tokens": 4, "n": 2}).json()
    assert answer["usage"]["completion_tokens"] == 8
    after = _scrape(server)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("enginehouse_requests_total,api_server=0,finish_reason=length") == 2
    assert grown("enginehouse_prompt_tokens_total,api_server=0") == 5
    assert grown("enginehouse_generation_tokens_total,api_server=0") == 8
    assert grown("enginehouse_time_to_first_token_seconds_count,api_server=0") == 2
    assert grown("enginehouse_inter_token_latency_seconds_count,api_server=0") == 6
    assert grown("enginehouse_request_duration_seconds_count,api_server=0") == 1
    assert grown("enginehouse_http_responses_total,api_server=0,path=/v1/completions,status=200") == 1
    assert after["enginehouse_max_context_length_tokens"] == 64
    assert after["enginehouse_cache_config_info,block_size=16,num_gpu_blocks=32"] == 1
    core.send(encode(Outputs((), StepStats(running=3, waiting=2, kv_blocks_used=8, preemptions=7))))
    eventually(lambda: _scrape(server)["enginehouse_requests_running"] == 3, "the core's figures")
    figures = _scrape(server)
    assert figures["enginehouse_requests_waiting"] == figures["vllm:num_requests_waiting"] == 2
    assert figures["vllm:num_requests_running"] == 3
    assert figures["enginehouse_kv_cache_usage_ratio"] == figures["vllm:kv_cache_usage_perc"] == 0.25
    assert figures["enginehouse_preemptions_total,rank=0"] == 7
    core.send(encode(Outputs((), StepStats())))
    eventually(lambda: _scrape(server)["enginehouse_requests_running"] == 0, "an idle core")
