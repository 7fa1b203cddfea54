"""make bench NAME=engine: tokens per second, time to first token and time between tokens, beside transformers in the same run.

The one job: send the same requests of mixed lengths to the running engine over HTTP and to ``transformers`` generate, one by one
and as a padded batch, with the same weights, dtype and threads, in turns.
The load generator shares the machine's cores with the engine; transformers runs without one, and nothing of it runs meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import record

from enginehouse_engine.cores import spin_briefly, usable_cores

# For the peer too: its threads are to wait for each other as the engine's do.
spin_briefly()

import torch  # noqa: E402 - after spin_briefly()
import transformers  # noqa: E402 - after spin_briefly()

import smollm2_reference  # noqa: E402 - after spin_briefly()
from localkube import model  # noqa: E402 - after spin_briefly()
from localkube.paths import CachePaths, cache_root  # noqa: E402 - after spin_briefly()

CONCURRENCY = (1, 8, 32)
REQUESTS = {1: 6, 8: 16, 32: 32}
"""Per repeat: those of concurrency 1 follow one another."""
PROMPT_TOKENS = (16, 128)
ANSWER_TOKENS = (16, 96)
VOCABULARY = range(100, 49_000)
"""Ordinary tokens of SmolLM2."""
AT_LEAST_ONE_BY_ONE = 1.0
AT_LEAST_PADDED_BATCH = 1.2
SERVED_NAME = "smollm2"
READY_SECONDS = 120.0
ANSWER_SECONDS = 600.0


@dataclass(frozen=True)
class Request:
    """What both sides are asked: so many tokens after this prompt, whatever they are."""

    prompt: list[int]
    answer_tokens: int


@dataclass
class Measured:
    """One workload on one side."""

    tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: list[float] = field(default_factory=list)
    between_tokens_seconds: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def workload(count: int, *, seed: int) -> list[Request]:
    """Prompts share nothing, so that neither a cache nor luck helps."""
    draw = random.Random(seed)
    return [
        Request([draw.choice(VOCABULARY) for _ in range(draw.randint(*PROMPT_TOKENS))], draw.randint(*ANSWER_TOKENS))
        for _ in range(count)
    ]


@contextmanager
def running_engine(gguf_file: Path, dtype: str) -> Iterator[str]:
    """The engine as a user starts it, on a port of the kernel's choice; its URL."""
    command = [sys.executable, "-m", "enginehouse_engine", "--model", str(gguf_file), "--port", "0", "--dtype", dtype]
    command += ["--served-model-name", SERVED_NAME, "--startup-timeout-seconds", str(READY_SECONDS)]
    record.FOLDER.mkdir(parents=True, exist_ok=True)
    log = record.FOLDER / f"engine-{dtype}.log"
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready: "):
                raise RuntimeError(f"the engine did not become ready, see {log}")
            yield line.removeprefix("ready: ").partition(",")[0].strip()
        finally:
            process.send_signal(signal.SIGTERM)


async def ask(client: httpx.AsyncClient, request: Request, measured: Measured) -> None:
    """Stream one answer and note when its parts arrive."""
    body = {
        "model": SERVED_NAME,
        "prompt": request.prompt,
        "max_tokens": request.answer_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked = last = time.perf_counter()
    first = True
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"HTTP {response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.perf_counter()
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                measured.tokens += chunk["usage"]["completion_tokens"]
            elif first:
                measured.first_token_seconds.append(now - asked)
                first = False
            else:
                measured.between_tokens_seconds.append(now - last)
            last = now


async def load(url: str, requests: list[Request], concurrency: int) -> Measured:
    """All requests, so many at a time."""
    measured = Measured()
    queue = list(reversed(requests))

    async def worker(client: httpx.AsyncClient) -> None:
        while queue:
            await ask(client, queue.pop(), measured)

    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, limits=limits) as client:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker(client))
        measured.seconds = time.perf_counter() - began
    wanted = sum(request.answer_tokens for request in requests)
    if measured.tokens != wanted:
        raise RuntimeError(f"{wanted} tokens were asked for, {measured.tokens} came")
    return measured


@torch.inference_mode()
def one_by_one(peer: Any, requests: list[Request]) -> Measured:
    """The peer without batching."""
    began = time.perf_counter()
    for request in requests:
        tokens = torch.tensor([request.prompt])
        _generate(peer, tokens, torch.ones_like(tokens), request.answer_tokens)
    return Measured(sum(request.answer_tokens for request in requests), time.perf_counter() - began)


@torch.inference_mode()
def padded_batches(peer: Any, requests: list[Request], size: int) -> Measured:
    """The peer with left-padded batches: all wait for the longest, only tokens that were asked for count."""
    began = time.perf_counter()
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        longest = max(len(request.prompt) for request in batch)
        tokens = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, request in enumerate(batch):
            tokens[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[row, longest - len(request.prompt) :] = 1
        _generate(peer, tokens, mask, max(request.answer_tokens for request in batch))
    return Measured(sum(request.answer_tokens for request in requests), time.perf_counter() - began)


def _generate(peer: Any, tokens: torch.Tensor, mask: torch.Tensor, count: int) -> None:
    peer.generate(tokens, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=2)


def measure(gguf_file: Path, folder: Path, dtype: str, repeats: int) -> list[dict[str, Any]]:
    """One entry per repeat and concurrency: the engine's and the peer's figures for the same requests."""
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    rows = []
    with running_engine(gguf_file, dtype) as url:
        warm = workload(4, seed=0)
        asyncio.run(load(url, warm, 4))
        padded_batches(peer, warm, 4)
        for repeat in range(repeats):
            for concurrency in CONCURRENCY:
                requests = workload(REQUESTS[concurrency], seed=1000 * (repeat + 1) + concurrency)
                engine = asyncio.run(load(url, requests, concurrency))
                other = one_by_one(peer, requests) if concurrency == 1 else padded_batches(peer, requests, concurrency)
                rows.append(_row(dtype, repeat, concurrency, engine, other))
                print(
                    f"{dtype} repeat {repeat} at {concurrency:2}: {engine.tokens_per_second:6.1f} tok/s, "
                    f"transformers {other.tokens_per_second:6.1f} tok/s",
                    flush=True,
                )
    return rows


def _row(dtype: str, repeat: int, concurrency: int, engine: Measured, other: Measured) -> dict[str, Any]:
    between = sorted(engine.between_tokens_seconds)
    return {
        "dtype": dtype,
        "repeat": repeat,
        "concurrency": concurrency,
        "engine_tokens_per_second": round(engine.tokens_per_second, 2),
        "transformers_tokens_per_second": round(other.tokens_per_second, 2),
        "transformers_mode": "one by one" if concurrency == 1 else "padded batch",
        "ratio": round(engine.tokens_per_second / other.tokens_per_second, 3),
        "first_token_seconds_p50": round(statistics.median(engine.first_token_seconds), 4),
        "first_token_seconds_max": round(max(engine.first_token_seconds), 4),
        "between_tokens_seconds_p50": round(statistics.median(between), 5),
        "between_tokens_seconds_p99": round(between[int(0.99 * (len(between) - 1))], 5),
        "engine": {key: value for key, value in asdict(engine).items() if key in ("tokens", "seconds")},
        "transformers": {key: value for key, value in asdict(other).items() if key in ("tokens", "seconds")},
    }


def bars(rows: list[dict[str, Any]]) -> list[record.Bar]:
    """The median ratio over the repeats, for each dtype."""
    found = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        for concurrency, limit in ((1, AT_LEAST_ONE_BY_ONE), (32, AT_LEAST_PADDED_BATCH)):
            ratios = [row["ratio"] for row in rows if (row["dtype"], row["concurrency"]) == (dtype, concurrency)]
            peer = "one by one" if concurrency == 1 else "padded batch"
            name = f"{dtype}, {concurrency} at a time: tokens per second over transformers {peer}"
            found.append(record.at_least(name, statistics.median(ratios), limit=limit, unit="x"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), action="append", help="one of them only")
    arguments = parser.parse_args()
    threads = usable_cores()
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    gguf_file = model.ensure(CachePaths(cache_root()))
    folder = smollm2_reference.ensure(gguf_file)
    rows: list[dict[str, Any]] = []
    for dtype in arguments.dtype or ("float32", "bfloat16"):
        rows += measure(gguf_file, folder, dtype, arguments.repeats)
    figures = {
        "model": gguf_file.name,
        "prompt_tokens": PROMPT_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "threads": threads,
        "load_average_at_end": os.getloadavg()[0],
        "rows": rows,
    }
    packages = ("torch", "transformers", "safetensors", "gguf", "httpx")
    return record.write("engine", figures=figures, bars=bars(rows), repeats=arguments.repeats, packages=packages)


if __name__ == "__main__":
    sys.exit(main())
