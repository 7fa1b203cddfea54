"""Two ranks and two API servers under the real launcher: whoever is killed, every request ends once, and the rest goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from enginehouse_engine.executor.simulated import simulated_answer
from running_engine import DEADLINE_SECONDS, SIMULATED, SOURCES, Engine, end, start

from .conftest import eventually

TOKENS = 400
RETRYABLE = {"engine_core_lost", "service_unavailable"}
EVERYBODY = ("engine core of rank 0", "engine core of rank 1", "API server 0", "API server 1")

_TLS = ssl.create_default_context()
"""Made once: making one takes longer than a request."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = start(tmp_path, "--data-parallel", "2", "--api-servers", "2")
    yield engine
    end(engine)


@dataclass
class Traffic:
    """Clients that ask one question after another, each over a connection of its own."""

    url: str
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def ask(self, prompt: str, *, stream: bool) -> str:
        """How one request ended: ``answer``, ``refused`` (an error that says so) or ``broken`` (its server is gone)."""
        expected = bytes(token for token in simulated_answer(list(prompt.encode()), TOKENS) if token < 256).decode()
        body = {"model": "sim", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": stream}
        try:
            response = httpx.post(f"{self.url}/v1/completions", json=body, timeout=DEADLINE_SECONDS, verify=_TLS)
        except httpx.TimeoutException:
            self.wrong.append(f"no end of {prompt} in {DEADLINE_SECONDS} s")
            return "hangs"
        except httpx.TransportError:
            return "broken"
        if response.status_code == 200 and not stream:
            text, ends = response.json()["choices"][0]["text"], ["answer"]
        elif response.status_code == 200:
            events = [event.removeprefix("data: ") for event in response.text.strip().split("\n\n")]
            chunks = [json.loads(event) for event in events if event != "[DONE]"]
            text = "".join(chunk["choices"][0]["text"] for chunk in chunks if "error" not in chunk)
            ends = [f"refused {chunk['error']['code']}" for chunk in chunks if "error" in chunk] + ["answer"] * events.count(
                "[DONE]"
            )
        else:
            text, ends = "", [f"refused {response.json()['error']['code']}"]
            if "retry-after" not in response.headers:
                self.wrong.append(f"{response.status_code} without Retry-After: {response.text}")
        word, _, code = ends[0].partition(" ")
        if len(ends) != 1 or not expected.startswith(text) or (word == "answer" and text != expected):
            self.wrong.append(f"{prompt} ended with {ends}, {text!r} instead of {expected!r}")
        if word == "refused" and code not in RETRYABLE:
            self.wrong.append(f"{prompt} ended with {code}")
        return word

    def _run(self, client: int) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            self.outcomes[self.ask(f"client {client}, question {number}", stream=client % 2 == 0)] += 1

    @contextmanager
    def flowing(self, clients: int) -> Iterator[None]:
        """From many answers before the body to some after it."""
        threads = [threading.Thread(target=self._run, args=(client,)) for client in range(clients)]
        for thread in threads:
            thread.start()
        try:
            self.wait_for_answers(10)
            yield
            self.wait_for_answers(10)
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(2 * DEADLINE_SECONDS)

    def wait_for_answers(self, count: int) -> None:
        before = self.outcomes["answer"]
        eventually(lambda: self.outcomes["answer"] >= before + count, f"{count} answers; so far {self.outcomes}, {self.wrong}")


def _meetings(engine: Engine) -> int:
    """How often an API server has let in a core."""
    return engine.log.read_text().count(" serves, context length ")


def _handed_over(engine: Engine) -> float:
    """Tokens of prompts."""
    text = httpx.get(f"{engine.url}/metrics").text
    return sum(map(float, re.findall(r"^enginehouse_prompt_tokens_total{.*} (\S+)$", text, re.MULTILINE)))


@pytest.mark.parametrize("victim", EVERYBODY)
def test_every_request_ends_once_and_right_while_somebody_is_killed_and_comes_back(engine: Engine, victim: str) -> None:
    traffic = Traffic(engine.url)
    first = engine.pid(victim)
    eventually(lambda: _meetings(engine) == 4, "every API server has let in every core")
    with traffic.flowing(clients=4):
        os.kill(first, signal.SIGKILL)
        traffic.wait_for_answers(10)
        eventually(lambda: engine.pid(victim) != first, "its successor")
        eventually(lambda: _meetings(engine) == 6, "the successor at both of its opposites")
    assert traffic.wrong == []
    assert traffic.outcomes["broken"] == 0 or victim.startswith("API server")
    eventually(engine.idle, "idle cores: nothing of a predecessor's requests is left in them")
    assert engine.process.poll() is None


def test_only_the_requests_of_the_rank_that_died_fail(engine: Engine) -> None:
    traffic = Traffic(engine.url)
    core = engine.pid("engine core of rank 0")
    os.kill(core, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as threads:
        outcomes = [threads.submit(traffic.ask, f"{number}", stream=number % 2 == 0) for number in range(8)]
        eventually(lambda: _handed_over(engine) == 8, "eight prompts of one token at the cores")
        os.kill(core, signal.SIGKILL)
        words = Counter(outcome.result(DEADLINE_SECONDS) for outcome in outcomes)
    assert traffic.wrong == []
    assert words.total() == words["answer"] + words["refused"]
    assert min(words["answer"], words["refused"]) > 0
    assert httpx.get(f"{engine.url}/ready").status_code == 200


def test_a_core_with_another_configuration_is_not_let_in(tmp_path: Path) -> None:
    script = Path(__file__).with_name("run_with_another_config.py")
    flags = ("--data-parallel", "2", "--port", "0", "--memory-limit-bytes", str(1 << 30), "--max-context-length", "512")
    ended = subprocess.run(
        [sys.executable, str(script), *SIMULATED[2:], *flags],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert ended.returncode == 1
    assert re.search(r"front end 0 refused this core: the core's configuration \w+ is not this API server's \w+", ended.stderr)
