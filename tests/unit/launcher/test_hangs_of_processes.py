"""The real launcher, and processes that are stopped, stuck or slow: what hangs goes and comes back, what is slow is left alone."""

from __future__ import annotations

import os
import re
import select
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginehouse_engine.executor.simulated import simulated_answer
from launched_engine import DEADLINE_SECONDS, Launched
from logged_process import watched
from members import Members, ask, expected_text

RANK = {"engine-core 0": "publish,peers,addresses,hello", "worker 0.0": "publish,peers"}
BEHAVIOURS = {**RANK, "api-server 0": "cores,bound", "api-server 1": "cores,bound"}
EVERYBODY = ["API server 1", "engine core of rank 0", "worker 0 of rank 0"]


@pytest.fixture
def engine(launched: Any, tmp_path: Path) -> Any:
    """A rank with a worker, and two API servers: stand-ins that serve and answer."""
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b"GGUF1234")

    def start(*flags: str) -> Launched:
        one: Launched = launched(BEHAVIOURS, "--model", str(model), "--executor", "Multiprocess", "--api-servers", "2", *flags)
        one.output()
        one.until(f'pid {one.pid("engine core of rank 0")} was given .*"addresses"')
        return one

    return start


@pytest.mark.parametrize("victim", EVERYBODY)
def test_a_process_that_is_stopped_for_too_long_is_ended_as_a_hang_and_comes_back(engine: Any, victim: str) -> None:
    one = engine("--hang-stall-seconds", "1")
    pid = one.pid(victim)
    with watched(pid) as gone:
        os.kill(pid, signal.SIGSTOP)
        one.until(f"{victim} was stopped by SIGSTOP")
        assert gone()
    one.pid(victim, incarnation=2)
    one.until('hears .*"incarnation": 2, "state": "Serving"' if "rank" in victim else "hears .*front-1-2")
    one.process.terminate()
    assert one.wait() == 0, "it was made good"


@pytest.mark.parametrize("victim", EVERYBODY)
def test_a_process_that_is_continued_in_time_goes_on_as_if_nothing_had_been(engine: Any, victim: str) -> None:
    one = engine("--hang-stall-seconds", "60")
    for _ in range(2):
        os.kill(one.pid(victim), signal.SIGSTOP)
        one.until(f"{victim} was stopped by SIGSTOP")
        os.kill(one.pid(victim), signal.SIGCONT)
        one.until(f"{victim} goes on")
    one.process.terminate()
    assert one.wait() == 0
    assert "incarnation 2" not in one.text()


def test_a_stopped_process_hides_no_death_of_another_and_can_be_killed(engine: Any) -> None:
    one = engine("--hang-stall-seconds", "60")
    os.kill(one.pid("API server 0"), signal.SIGSTOP)
    one.until("API server 0 was stopped by SIGSTOP")
    os.kill(one.pid("worker 0 of rank 0"), signal.SIGKILL)
    one.until("worker 0 of rank 0 was killed by SIGKILL")
    one.pid("worker 0 of rank 0", incarnation=2)
    with watched(one.pid("API server 0")) as gone:
        one.process.terminate()
        one.until("launcher: stopping")
        one.process.terminate()
        assert gone()
    assert one.wait() == 0


def test_a_process_that_is_stopped_before_it_serves_ends_the_start_as_a_hang(launched: Any) -> None:
    one = launched({"api-server 0": "bound", "engine-core 0": "stage=load,deaf"}, "--hang-stall-seconds", "1")
    core = one.pid("engine core of rank 0")
    one.until("does deaf")
    os.kill(core, signal.SIGSTOP)
    assert one.wait() == 137
    assert "the engine ends: Hang: engine core of rank 0 was stopped by SIGSTOP and not continued for 1 s" in one.text()


def test_a_launcher_that_was_stopped_itself_condemns_nobody_when_it_goes_on(engine: Any) -> None:
    one = engine("--hang-stall-seconds", "1")
    one.process.send_signal(signal.SIGSTOP)
    assert not select.select([one.process.stdout], [], [], 3.0)[0], "it does nothing, for three times as long"
    one.process.send_signal(signal.SIGCONT)
    one.process.terminate()
    assert one.wait() == 0
    assert "incarnation 2" not in one.text()


def asked(line: str, *, prompt: bytes) -> httpx.Response:
    body = {"model": "simulated", "prompt": list(prompt), "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{line.removeprefix('ready: ').split(',')[0]}/v1/completions", json=body, timeout=DEADLINE_SECONDS)


def answer(prompt: bytes) -> str:
    return bytes(simulated_answer(list(prompt), 8)).decode()


REAL = ("--memory-limit-bytes", "2000000000", "--max-context-length", "512")


def test_a_core_that_goes_round_in_a_step_for_ever_is_ended_as_a_hang_and_its_rank_is_back(launched: Any) -> None:
    one = launched({"engine-core 0": "steps-spin=11"}, *REAL, "--hang-stall-seconds", "2")
    line = one.output()
    assert asked(line, prompt=b"short").json()["choices"][0]["text"] == answer(b"short")
    failed = asked(line, prompt=b"eleven long")
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "engine_core_lost")
    one.until(r"started engine core of rank 0, pid \d+, incarnation 2")
    assert re.search(r"Current thread .* \(most recent call first\):\n  File ", one.text()), "where it went round is in the log"
    one.until("incarnation 2 of rank 0|rank 0 serves(.|\n)*rank 0 serves")
    assert asked(line, prompt=b"short").json()["choices"][0]["text"] == answer(b"short")


def test_a_step_that_takes_longer_than_a_ping_period_and_less_than_the_stall_time_is_left_alone(launched: Any) -> None:
    one = launched({"engine-core 0": "steps-take=11:2.5"}, *REAL, "--hang-stall-seconds", "4")
    line = one.output()
    with ThreadPoolExecutor(2) as threads:
        several = [threads.submit(asked, line, prompt=b"eleven long") for _ in range(2)]
        assert [one.result().json()["choices"][0]["text"] for one in several] == [answer(b"eleven long")] * 2
    one.process.terminate()
    assert one.wait() == 0
    assert "incarnation 2" not in one.text()


@pytest.mark.parametrize("victim", ["API server 0", "engine core of rank 0"])
def test_under_load_too_whoever_is_stopped_goes_and_the_requests_end(launched: Any, victim: str) -> None:
    one = launched({}, *REAL, "--api-servers", "2", "--hang-stall-seconds", "2")
    line = one.output()
    os.kill(one.pid(victim), signal.SIGSTOP)
    one.until(f"{victim} was stopped by SIGSTOP")

    def ends() -> str:
        try:
            response = asked(line, prompt=b"short")
        except httpx.TransportError:
            return "broken"
        return "answer" if response.status_code == 200 else response.json()["error"]["code"]

    with ThreadPoolExecutor(8) as threads:
        ended = [future.result() for future in [threads.submit(ends) for _ in range(8)]]
    assert set(ended) <= {"answer", "broken", "engine_core_lost", "service_unavailable"}
    assert ("broken" in ended) <= (victim == "API server 0")
    one.until(f"{victim}: Hang|{victim} was killed by SIGKILL")
    one.pid(victim, incarnation=2)


@pytest.mark.parametrize(("who", "name"), [(0, "worker 1 of rank 0"), (1, "worker 1 of rank 1 in member 1")])
def test_a_worker_that_is_stopped_in_any_member_is_blamed_in_both_and_not_its_core(tmp_path: Path, who: int, name: str) -> None:
    replica = Members(tmp_path, members=2, workers_each=2, data=2, tensor=2)
    try:
        members = replica.start_all("--hang-stall-seconds", "2")
        pid = int(members[who].until(rf"started {name}, pid (\d+)")[1])
        os.kill(pid, signal.SIGSTOP)
        members[who].until(f"{name} was stopped by SIGSTOP")
        with ThreadPoolExecutor(4) as threads:
            codes = {future.result().status_code for future in [threads.submit(ask, members[0]) for _ in range(4)]}
        assert codes <= {200, 503}
        if who == 0:
            members[0].until(rf"started {name}, pid \d+, incarnation 2")
        else:
            assert members[1].exit_code() == 137
            members[1].until(f"the engine ends: Hang: {name} was stopped by SIGSTOP and not continued for 2 s")
        members[0].until("rank 0 serves")
        assert ask(members[0]).json()["choices"][0]["text"] == expected_text()
        assert "has not answered" not in members[0].text()
    finally:
        replica.close()
