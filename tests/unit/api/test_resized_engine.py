"""Ranks added to a real engine and taken from it while clients stream from two API servers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import small_model
from enginehouse_engine.core.context_fit import kv_block_bytes
from enginehouse_engine.launcher.memory_budget import budget_per_worker_bytes, rank_process_bytes
from monitored_engine import DEADLINE_SECONDS, MonitoredEngine, steps, text_of
from request_load import Kind, Load, questions
from running_engine import LIMIT, SIMULATED

S = "Serving"
SIMULATED_BLOCK_BYTES = kv_block_bytes(layers=30, kv_heads=3, head_dim=64, block_size=16, element_bytes=2)
SMALLER_LIMIT = 8 * 16
"""Of nine blocks, one of which is reserved."""


@pytest.fixture
def resized(tmp_path: Path) -> Iterator[Callable[..., MonitoredEngine]]:
    """Starts engines with two API servers; whatever happens to them, nothing stays."""
    started: list[MonitoredEngine] = []

    def start(*flags: str, at_once: int | None = None, arguments: tuple[str, ...] = SIMULATED) -> MonitoredEngine:
        served = ("--served-model-name", "simulated", "--api-servers", "2")
        started.append(MonitoredEngine(tmp_path, *served, *flags, at_once=at_once, arguments=arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()


def computed(one: MonitoredEngine) -> dict[int, float]:
    return steps(httpx.get(f"{one.engine.url}/metrics").text)


def test_one_rank_becomes_three_one_and_two_under_load_and_no_request_is_lost(
    resized: Callable[..., MonitoredEngine],
) -> None:
    one = resized()
    one.until_ranks((0, 1, S))
    at_first = one.holdings()
    with Load(one.engine.url) as load:
        one.resize(3)
        one.until_ranks((0, 1, S), (1, 1, S), (2, 1, S))
        one.until(lambda: all(computed(one).get(rank, 0) > 20 for rank in range(3)), "all three to compute")
        one.resize(1)
        one.until_ranks((0, 1, S))
        one.resize(2)
        one.until_ranks((0, 1, S), (1, 2, S))
        one.until(lambda: computed(one).get(1, 0) > 20, "the second life of rank 1 to compute")
        load.stop()
        outcomes = load.taken()
        assert [str(outcome) for outcome in outcomes if outcome.kind is not Kind.ANSWERED] == []
        assert len(outcomes) > 20
    one.resize(1)
    one.until_ranks((0, 1, S))
    one.until(lambda: one.holdings() == at_first, f"nothing but {at_first}")
    assert [report for report in one.exits if not report["planned"]] == []
    assert {(report["rank"], report["incarnation"]) for report in one.exits} == {(1, 1), (2, 1), (1, 2)}
    one.engine.process.send_signal(signal.SIGTERM)
    assert one.engine.process.wait(DEADLINE_SECONDS) == 0


def test_a_resize_that_is_changed_midway_comes_to_the_last_number(resized: Callable[..., MonitoredEngine]) -> None:
    one = resized()
    with Load(one.engine.url) as load:
        for ranks in (3, 1, 4, 2, 1, 2):
            one.resize(ranks)
        one.until(lambda: [(rank, state) for rank, _, state in one.ranks()] == [(0, S), (1, S)], "two ranks")
        load.stop()
        assert {outcome.kind for outcome in load.taken()} == {Kind.ANSWERED}
    cores = [line for line in one.children().values() if "core.process" in line]
    assert len(cores) == 2
    assert [report for report in one.exits if not report["planned"]] == []


def test_a_rank_that_is_killed_while_it_drains_is_told_fails_its_request_and_is_gone(
    resized: Callable[..., MonitoredEngine],
) -> None:
    one = resized("--data-parallel", "2")
    core = one.engine.pid("engine core of rank 1")
    os.kill(core, signal.SIGSTOP)  # what is under way there does not end
    answers: list[httpx.Response] = []
    # Shorter than a block: an API server sends the next of two to the other rank, whatever it sent where before.
    body = questions(1)[0].body(stream=False) | {"prompt": [65, 66, 67]}
    clients = [
        threading.Thread(target=lambda: answers.append(httpx.post(f"{one.engine.url}/v1/completions", json=body, timeout=60)))
        for _ in range(8)
    ]
    for client in clients:
        client.start()
    # With three, one of the two API servers has sent its second, which went to rank 1.
    one.until(lambda: 2 < len(answers) < len(clients), "those of rank 0")
    one.resize(1)
    one.until_ranks((0, 1, S), (1, 1, "Draining"))
    assert httpx.post(f"{one.engine.url}/v1/completions", json=body, timeout=60).status_code == 200
    os.kill(core, signal.SIGKILL)
    one.until_ranks((0, 1, S))
    for client in clients:
        client.join(DEADLINE_SECONDS)
    failed = [answer for answer in answers if answer.status_code != 200]
    assert failed
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in failed} == {(503, "engine_core_lost")}
    assert [(report["rank"], report["signal"]) for report in one.exits if not report["planned"]] == [(1, signal.SIGKILL)]
    one.resize(2)
    one.until_ranks((0, 1, S), (1, 2, S))


def test_an_api_server_that_is_killed_in_a_resize_comes_back_and_the_resize_is_made(
    resized: Callable[..., MonitoredEngine],
) -> None:
    one = resized("--data-parallel", "2")
    os.kill(one.engine.pid("API server 1"), signal.SIGKILL)
    one.resize(3)
    one.until_ranks((0, 1, S), (1, 1, S), (2, 1, S))
    one.until(lambda: [server["state"] for server in one.states[-1]["apiServers"]] == [S, S], "both API servers")
    one.resize(1)
    one.until_ranks((0, 1, S))


def test_asked_to_stop_while_a_rank_comes_it_ends_in_order(resized: Callable[..., MonitoredEngine]) -> None:
    one = resized()
    one.resize(2)
    one.until_ranks((0, 1, S), (1, 1, "Starting"))
    one.engine.process.send_signal(signal.SIGTERM)
    assert one.engine.process.wait(DEADLINE_SECONDS) == 0
    assert [report for report in one.exits if not report["planned"]] == []


def test_a_smaller_rank_that_is_added_lowers_what_every_api_server_accepts_for_good(
    resized: Callable[..., MonitoredEngine],
) -> None:
    kept = rank_process_bytes("Simulated", workers=0)
    budget = budget_per_worker_bytes(
        1 << 30, utilization_percent=90, ranks=2, workers=0, api_servers=2, rank_process_bytes=kept
    )  # of 1 GiB, as of the engines of this file
    one = resized("--data-parallel", "2", "--simulated-weights", f"1={budget - 9 * SIMULATED_BLOCK_BYTES}", at_once=1)
    one.until_ranks((0, 1, S))

    def limits() -> set[int]:
        return {httpx.get(f"{one.engine.url}/ready").json()["max_model_len"] for _ in range(8)}

    assert limits() == {LIMIT}
    one.resize(2)
    one.until_ranks((0, 1, S), (1, 2, S))
    one.until(lambda: limits() == {SMALLER_LIMIT}, "the smaller limit at both API servers")
    one.resize(1)
    one.until_ranks((0, 1, S))
    assert limits() == {SMALLER_LIMIT}
    assert one.states[-1]["ranks"][0]["maxContextLength"] == SMALLER_LIMIT


@pytest.mark.slow
def test_ranks_of_worker_processes_come_and_go_and_leave_nothing(resized: Callable[..., MonitoredEngine], tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    small_model.make(model)
    shape = ("--executor", "Multiprocess", "--memory-limit-bytes", str(8 << 30))
    one = resized(*shape, arguments=("-m", "enginehouse_engine", "--model", str(model)))
    at_first = one.holdings()
    stopped = threading.Event()
    answers: list[tuple[int, int]] = []

    def ask() -> None:
        body = {"model": "simulated", "prompt": "Once", "max_tokens": 60, "temperature": 0, "ignore_eos": True, "stream": True}
        while not stopped.is_set():
            answer = httpx.post(f"{one.engine.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS)
            answers.append((answer.status_code, len(text_of(answer.text))))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    one.resize(2)
    one.until_ranks((0, 1, S), (1, 1, S))
    one.until(lambda: computed(one).get(1, 0) > 100, "rank 1 to compute")
    one.resize(1)
    one.until_ranks((0, 1, S))
    stopped.set()
    for client in clients:
        client.join(DEADLINE_SECONDS)
    assert set(answers) == {(200, 60)}, "a character for each token, and nobody is cut"
    one.until(lambda: one.holdings() == at_first, f"nothing but {at_first}")
    assert [report for report in one.exits if not report["planned"]] == []
