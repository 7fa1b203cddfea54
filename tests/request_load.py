"""Steady requests to one engine, as a client with a pool of kept connections and without retries sends them.

The one job: several requests under way all the time, and what became of each. Every answer is compared with the right one: by
default the one that the simulated model must give. Invariant: a request that was begun has exactly one outcome; one that takes
longer than the deadline is lost. Not done here: deciding which outcomes a test may see.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

import httpx

from enginehouse_engine.executor.simulated import simulated_answer

DEADLINE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.05
"""Of one client between two requests: connections are used again soon, and a small machine has time for the engine."""
_END_OF_TEXT: Final = 256


class Kind(StrEnum):
    """What became of a request."""

    ANSWERED = "answered"
    """Whole and right."""
    REFUSED = "refused"
    """A clean error that says: send it again. Or no connection: nobody has seen the request."""
    LOST = "lost"
    """Reset, cut without a word, too late, wrong, or an error that is not to be tried again."""


@dataclass(frozen=True)
class Outcome:
    """Of one request; times of the monotonic clock."""

    kind: Kind
    words: str
    began: float
    ended: float
    port: int
    """Of this end of its connection; 0 = there was no response."""

    def __str__(self) -> str:
        return f"{self.kind} after {self.ended - self.began:.2f} s: {self.words}"


@dataclass(frozen=True)
class Question:
    """A request and its one right answer."""

    prompt: tuple[int, ...]
    answer: str
    tokens: int

    def body(self, *, stream: bool) -> dict[str, Any]:
        return {
            "model": "simulated",
            "prompt": list(self.prompt),
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
        }


def questions(count: int, *, seed: int = 1) -> list[Question]:
    """Short ones, all different."""
    draw, found = random.Random(seed), list[Question]()
    while len(found) < count:
        prompt, tokens = tuple(draw.randrange(32, 127) for _ in range(draw.randrange(1, 60))), draw.randrange(20, 100)
        answer = simulated_answer(prompt, tokens)
        if _END_OF_TEXT not in answer:
            found.append(Question(prompt, bytes(answer).decode(), tokens))
    return found


class Load:
    """Use it as a context: leaving it waits for the requests under way."""

    def __init__(self, url: str, *, clients: int = 6, ask: Sequence[Question] = ()) -> None:
        """So many requests at a time, and at most as many connections. ``ask``: what, where the model is not the simulated one."""
        self._url = f"{url}/v1/completions"
        self._ask_all = ask
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients, keepalive_expiry=DEADLINE_SECONDS)
        self._http = httpx.Client(timeout=DEADLINE_SECONDS, limits=limits, trust_env=False)
        self._stop = threading.Event()
        self._ended = threading.Condition()
        """Held to read and write the two below."""
        self._outcomes: list[Outcome] = []
        self._count = 0
        self._threads = [threading.Thread(target=self._ask_until_stopped, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No new request; those under way are waited for. Raises when one hangs."""
        self._stop.set()
        deadline = time.monotonic() + 2 * DEADLINE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._http.close()
        hanging = sum(thread.is_alive() for thread in self._threads)
        assert not hanging, f"{hanging} requests have not ended {2 * DEADLINE_SECONDS:.0f} s after the last one began"

    def wait(self, seconds: float) -> None:
        """While requests go on."""
        self._stop.wait(seconds)

    def until_ended(self, count: int) -> None:
        """So many more requests, counted from now. Raises when they do not end in time."""
        with self._ended:
            wanted = self._count + count
            assert self._ended.wait_for(lambda: self._count >= wanted, timeout=2 * DEADLINE_SECONDS), (
                f"of {count} requests {wanted - self._count} have not ended in {2 * DEADLINE_SECONDS:.0f} s"
            )

    def taken(self) -> list[Outcome]:
        """Of requests that have ended since this was asked last."""
        with self._ended:
            taken, self._outcomes = self._outcomes, []
        return taken

    def _ask_until_stopped(self, number: int) -> None:
        mine = self._ask_all or questions(8, seed=number)
        turn = 0
        while not self._stop.is_set():
            outcome = self._ask(mine[turn % len(mine)], stream=(turn + number) % 2 == 0)
            with self._ended:
                self._outcomes.append(outcome)
                self._count += 1
                self._ended.notify_all()
            turn += 1
            self._stop.wait(PAUSE_SECONDS)

    def _ask(self, question: Question, *, stream: bool) -> Outcome:
        began, port = time.monotonic(), 0
        try:
            with self._http.stream("POST", self._url, json=question.body(stream=stream)) as response:
                port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
                kind, words = _judged(response, question, stream=stream)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            kind, words = Kind.REFUSED, f"no connection: {error!r}"
        except httpx.HTTPError as error:
            kind, words = Kind.LOST, f"a {'stream' if stream else 'request'} ended with {error!r}"
        return Outcome(kind, words, began, time.monotonic(), port)


def _judged(response: httpx.Response, question: Question, *, stream: bool) -> tuple[Kind, str]:
    if response.status_code == httpx.codes.OK and stream:
        return _judged_stream(response, question)
    body = response.read()
    if response.status_code == httpx.codes.OK:
        return _compared(json.loads(body)["choices"][0]["text"], question)
    is_retryable = response.status_code in (429, 503) and "retry-after" in response.headers
    return (Kind.REFUSED if is_retryable else Kind.LOST), f"{response.status_code} {body.decode()[:300]}"


def _judged_stream(response: httpx.Response, question: Question) -> tuple[Kind, str]:
    """Complete with ``[DONE]``; failed with an event that holds an error."""
    text, done = "", False
    for line in response.iter_lines():
        if line == "data: [DONE]":
            done = True
        elif line.startswith("data: "):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                is_retryable = chunk["error"]["type"] == "server_error" and chunk["error"]["code"] != "internal_error"
                return (Kind.REFUSED if is_retryable else Kind.LOST), f"in a stream: {chunk['error']}"
            text += chunk["choices"][0]["text"]
    return _compared(text, question) if done else (Kind.LOST, f"a stream without an end after {len(text)} characters")


def _compared(text: str, question: Question) -> tuple[Kind, str]:
    if text == question.answer:
        return Kind.ANSWERED, ""
    return Kind.LOST, f"a wrong answer: {text!r} instead of {question.answer!r}"
