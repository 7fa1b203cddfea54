"""The whole engine from its command line: launcher, two API servers, two simulated engine cores, official client."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from enginehouse_engine.executor.simulated import simulated_answer
from running_engine import LIMIT, Engine, end, start

from .conftest import DEADLINE_SECONDS, eventually


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = start(tmp_path_factory.mktemp("engine"), "--data-parallel", "2", "--api-servers", "2")
    yield engine
    end(engine)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Engine]:
    engine = start(tmp_path)
    yield engine
    end(engine)


def _expected(prompt: str, count: int) -> str:
    return bytes(token for token in simulated_answer(list(prompt.encode()), count) if token < 256).decode()


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_those_of_the_cores_wherever_they_run(engine: Engine, stream: bool) -> None:
    with engine.client() as client:
        for number in range(8):
            prompt = f"prompt {number}"
            made: Any = client.completions.create(
                model="sim", prompt=prompt, max_tokens=50, temperature=0, stream=stream, extra_body={"ignore_eos": True}
            )
            choices = [chunk.choices[0] for chunk in made] if stream else made.choices
            assert "".join(choice.text for choice in choices) == _expected(prompt, 50)


def test_a_seed_gives_the_same_answers_again_and_n_gives_different_ones(engine: Engine) -> None:
    with engine.client() as client:
        runs = [client.completions.create(model="sim", prompt="x", max_tokens=20, seed=4, n=3) for _ in range(2)]
    texts = [[choice.text for choice in run.choices] for run in runs]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_scored_by_the_cores(engine: Engine, stream: bool) -> None:
    """Long ones in several chunks. The simulated model calls each token that follows the best one."""
    prompts = ["z" * 500, "short", "x"]
    with engine.client() as client:
        made: Any = client.completions.create(model="sim", prompt=prompts, max_tokens=0, logprobs=2, echo=True, stream=stream)
        choices = [choice for chunk in made for choice in chunk.choices] if stream else made.choices
    for choice in choices:
        prompt = prompts[choice.index]
        assert (choice.text, choice.finish_reason) == (prompt, "length")
        assert choice.logprobs.tokens == list(prompt)
        assert choice.logprobs.token_logprobs == [None] + [-1.0] * (len(prompt) - 1)
        assert choice.logprobs.text_offset == list(range(len(prompt)))
        if len(prompt) > 1:
            assert choice.logprobs.top_logprobs == [None, *({one: -1.0, chr(ord(one) + 1): -2.0} for one in prompt[1:])]
    assert sorted(choice.index for choice in choices) == [0, 1, 2]


def test_a_repeated_prompt_is_found_in_the_cache(alone: Engine) -> None:
    with alone.client() as client:
        usages = [client.completions.create(model="sim", prompt="y" * 100, max_tokens=2).usage for _ in range(2)]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages if usage and usage.prompt_tokens_details]
    assert cached == [0, 96]


def test_exactly_the_context_completes_and_one_token_more_is_refused(engine: Engine) -> None:
    with engine.client() as client:
        assert client.models.retrieve("sim").model_extra == {"max_model_len": LIMIT}
        whole = client.completions.create(model="sim", prompt="x" * 12, max_tokens=LIMIT - 12, extra_body={"ignore_eos": True})
        assert whole.usage is not None
        assert (whole.usage.total_tokens, whole.choices[0].finish_reason) == (LIMIT, "length")
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="sim", prompt="x" * 12, max_tokens=LIMIT - 11)
        assert refused.value.code == "context_length_exceeded"


def test_any_scrape_tells_of_all_api_servers_and_no_counter_ever_falls(engine: Engine) -> None:
    def total(name: str) -> float:
        found = re.findall(rf"^{name}{{.*}} (\S+)$", httpx.get(f"{engine.url}/metrics").text, re.MULTILINE)
        assert len(found) == 2, "one of each API server, or of each rank"
        return sum(map(float, found))

    generated = "enginehouse_generation_tokens_total"
    seen = [total(generated)]
    body = {"model": "sim", "prompt": "scrape", "max_tokens": 4, "ignore_eos": True}
    for _ in range(10):
        assert httpx.post(f"{engine.url}/v1/completions", json=body).status_code == 200
        seen += [total(generated) for _ in range(4)]
    assert seen == sorted(seen)
    assert seen[-1] == seen[0] + 40
    eventually(lambda: len({total("enginehouse_engine_steps_total") for _ in range(16)}) == 1, "all to know the last step")


def test_clients_that_go_away_leave_nothing_in_the_cores(engine: Engine) -> None:
    body = {"model": "sim", "prompt": "z", "max_tokens": LIMIT - 1, "ignore_eos": True, "stream": True, "n": 8}
    for _ in range(5):
        with httpx.stream("POST", f"{engine.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS) as response:
            assert next(response.iter_lines()).startswith("data: ")
    eventually(engine.idle, "idle cores")
    eventually(lambda: engine.figures()["enginehouse_kv_cache_usage_ratio"] == 0, "free caches")


def test_sigterm_lets_a_stream_finish(alone: Engine) -> None:
    with alone.client() as client:
        stream = client.completions.create(
            model="sim", prompt="w", max_tokens=LIMIT - 1, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        text = next(stream).choices[0].text
        alone.process.send_signal(signal.SIGTERM)
        text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == _expected("w", LIMIT - 1)
    assert alone.process.wait(DEADLINE_SECONDS) == 0


def test_the_death_of_a_core_fails_its_requests_so_that_they_can_be_sent_again(alone: Engine) -> None:
    core = alone.pid("engine core of rank 0")
    os.kill(core, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        body = {"model": "sim", "prompt": "abc", "stream": True}
        answer = threads.submit(httpx.post, f"{alone.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS)
        counted = 'enginehouse_prompt_tokens_total{api_server="0"} 3.0'
        eventually(lambda: counted in httpx.get(f"{alone.url}/metrics").text, "the request at its core")
        os.kill(core, signal.SIGKILL)
        failed = answer.result(DEADLINE_SECONDS)
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "engine_core_lost")
    assert failed.headers["retry-after"] == "1"
