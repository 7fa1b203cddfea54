"""make bench NAME=engine: tokens per second and what a step costs, beside transformers, llama.cpp and the memory's bandwidth.

The one job: send the same requests of mixed lengths to the running engine over HTTP, to ``transformers`` generate (one by one and
as a padded batch, same weights, dtype and threads) and to llama.cpp (same file, same threads), in turns.
The load generator shares the machine's cores with the engine; the peers run without one, and nothing of one runs meanwhile.
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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import engine_processes
import httpx
import llama_cpp
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
AT_LEAST_PEERS_AT_32 = 1.5
TRACED_TOKENS = 64
BANDWIDTH_BYTES = 512 << 20
BANDWIDTH_TRIES = 5
SERVED_NAME = "smollm2"
READY_SECONDS = 120.0
ANSWER_SECONDS = 600.0


@dataclass(frozen=True)
class Request:
    """What both sides are asked: so many tokens after this prompt, whatever they are."""

    prompt: list[int]
    answer_tokens: int


@dataclass(frozen=True)
class Options:
    """Of one run."""

    repeats: int
    executor: str
    llama_cpp: llama_cpp.Peer | None


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
def running_engine(gguf_file: Path, dtype: str, *options: str) -> Iterator[engine_processes.Started]:
    """The engine as a user starts it, on a port of the kernel's choice."""
    command = [sys.executable, "-m", "enginehouse_engine", "--model", str(gguf_file), "--port", "0", "--dtype", dtype, *options]
    command += ["--served-model-name", SERVED_NAME, "--startup-timeout-seconds", str(READY_SECONDS)]
    record.FOLDER.mkdir(parents=True, exist_ok=True)
    log = record.FOLDER / f"engine-{dtype}.log"
    began = time.time()
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready: "):
                raise RuntimeError(f"the engine did not become ready, see {log}")
            url = line.removeprefix("ready: ").partition(",")[0].strip()
            yield engine_processes.Started(url, process.pid, log, began, ready=time.time())
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


def measure(gguf_file: Path, folder: Path, dtype: str, options: Options) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One entry per repeat and concurrency, the figures of all sides for the same requests; and what the processes cost."""
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    weight_bytes = (folder / "model.safetensors").stat().st_size // torch.float32.itemsize * getattr(torch, dtype).itemsize
    rows = []
    with running_engine(gguf_file, dtype, "--executor", options.executor) as started:
        warm = workload(4, seed=0)
        asyncio.run(load(started.url, warm, 4))
        padded_batches(peer, warm, 4)
        for repeat in range(options.repeats):
            for concurrency in CONCURRENCY:
                requests = workload(REQUESTS[concurrency], seed=1000 * (repeat + 1) + concurrency)
                bandwidth = read_bandwidth()
                before = steps_of(started.url)
                engine = asyncio.run(load(started.url, requests, concurrency))
                steps = {name: value - before[name] for name, value in steps_of(started.url).items()}
                other = one_by_one(peer, requests) if concurrency == 1 else padded_batches(peer, requests, concurrency)
                row = _row(dtype, repeat, concurrency, engine, other)
                row["outside_model_seconds_per_step"] = round(steps["outside_model_seconds"] / steps["steps"], 6)
                row["model_seconds_per_step"] = round(steps["model_seconds"] / steps["steps"], 6)
                row["read_bytes_per_second"] = round(bandwidth)
                row["bound_tokens_per_second"] = round(bandwidth / weight_bytes, 2)
                if options.llama_cpp is not None:
                    plain = [asdict(request) for request in requests]
                    row["llama_cpp"] = options.llama_cpp.run(plain, concurrency=concurrency)
                    row["llama_cpp_tokens_per_second"] = round(row["llama_cpp"]["tokens"] / row["llama_cpp"]["seconds"], 2)
                    row["llama_cpp_ratio"] = round(row["engine_tokens_per_second"] / row["llama_cpp_tokens_per_second"], 3)
                row["load_average"] = os.getloadavg()[0]
                rows.append(row)
                print(
                    f"{dtype} repeat {repeat} at {concurrency:2}: {engine.tokens_per_second:6.1f} tok/s "
                    f"(decoding {row['decode_tokens_per_second']:.1f}, bound {row['bound_tokens_per_second']:.1f}), "
                    f"transformers {other.tokens_per_second:6.1f}, llama.cpp {row.get('llama_cpp_tokens_per_second', 'missing')}",
                    flush=True,
                )
        costs = _costs(started)
    return rows, costs


def _costs(started: engine_processes.Started) -> dict[str, Any]:
    """Of the processes that serve: looked at from outside, and at last killed."""
    holder = engine_processes.model_process(started)
    calls = {}
    for role, running in engine_processes.pids(started).items():
        if role in engine_processes.MODEL_ROLES:
            calls[role] = engine_processes.system_calls(running[0], lambda: _traced_steps(started.url))
    memory = engine_processes.memory(holder)
    return {
        "start_seconds": engine_processes.start_parts(started),
        "system_calls": calls,
        "memory": memory,
        "end_of_file_seconds": round(engine_processes.end_of_file_seconds(holder), 5),
    }


def _traced_steps(url: str) -> int:
    before = steps_of(url)["steps"]
    asyncio.run(load(url, [Request(list(range(200, 216)), TRACED_TOKENS)], 1))
    return int(steps_of(url)["steps"] - before)


def steps_of(url: str) -> dict[str, float]:
    """The core's own count of its steps and of the time in and outside the model."""
    found = {}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("enginehouse_engine_"):
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0].removeprefix("enginehouse_engine_").removesuffix("_total")] = float(value)
    return found


def read_bandwidth() -> float:
    """Bytes per second that all cores together read from memory: the best of a few sums over more than any cache holds."""
    numbers = torch.ones(BANDWIDTH_BYTES // 4)
    best = 0.0
    for _ in range(BANDWIDTH_TRIES):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, BANDWIDTH_BYTES / (time.perf_counter() - began))
    return best


def _row(dtype: str, repeat: int, concurrency: int, engine: Measured, other: Measured) -> dict[str, Any]:
    between = sorted(engine.between_tokens_seconds)
    return {
        "dtype": dtype,
        "repeat": repeat,
        "concurrency": concurrency,
        "engine_tokens_per_second": round(engine.tokens_per_second, 2),
        "decode_tokens_per_second": round(concurrency * len(between) / sum(between), 2),
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


def bars(rows: list[dict[str, Any]], costs: dict[str, Any]) -> list[record.Bar]:
    """Medians over the repeats, for each dtype; the peers' bars of the issue are for bfloat16."""
    found = []

    def median(name: str, dtype: str, concurrency: int) -> float:
        return statistics.median(row.get(name, 0.0) for row in rows if (row["dtype"], row["concurrency"]) == (dtype, concurrency))

    for dtype in costs:
        bf16 = dtype == "bfloat16"
        one, many = f"{dtype}, 1 at a time: ", f"{dtype}, 32 at a time: "
        found += [
            record.at_least(one + "over transformers one by one", median("ratio", dtype, 1), limit=AT_LEAST_ONE_BY_ONE, unit="x"),
            record.at_least(
                many + "over transformers padded batch",
                median("ratio", dtype, 32),
                limit=AT_LEAST_PEERS_AT_32 if bf16 else AT_LEAST_PADDED_BATCH,
                unit="x",
            ),
        ]
        if bf16:
            share = statistics.median(
                row["decode_tokens_per_second"] / row["bound_tokens_per_second"]
                for row in rows
                if (row["dtype"], row["concurrency"]) == (dtype, 1)
            )
            ratio = median("llama_cpp_ratio", dtype, 32)
            found += [
                record.at_least(many + "over llama.cpp (0 = not to be had)", ratio, limit=AT_LEAST_PEERS_AT_32, unit="x"),
                record.at_least(one + "decoding over what reading the weights allows", share, limit=0.5, unit="x"),
            ]
        for name, concurrency, limit in ((one, 1, 1.0), (many, 32, 3.0)):
            outside = 1000 * median("outside_model_seconds_per_step", dtype, concurrency)
            found.append(record.at_most(name + "outside the model per step", outside, limit=limit, unit="ms"))
        calls = sum(process["liveness"] for process in costs[dtype]["system_calls"].values())
        found.append(record.at_most(f"{dtype}: system calls for liveness while serving", calls, limit=0, unit="calls"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), action="append", help="one of them only")
    parser.add_argument("--executor", choices=("Multiprocess", "InProcess"), default="Multiprocess")
    arguments = parser.parse_args()
    threads = usable_cores()
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    gguf_file = model.ensure(CachePaths(cache_root()))
    folder = smollm2_reference.ensure(gguf_file)
    rows: list[dict[str, Any]] = []
    costs: dict[str, Any] = {}
    with ExitStack() as stack:
        try:
            peer = stack.enter_context(llama_cpp.running(cache_root(), gguf_file, threads=threads))
            about: Any = {"package": f"node-llama-cpp {llama_cpp.VERSION}", **peer.about}
        except llama_cpp.PeerMissing as error:
            peer, about = None, str(error)
            print(f"llama.cpp is missing: {error}", flush=True)
        options = Options(arguments.repeats, arguments.executor, peer)
        for dtype in arguments.dtype or ("float32", "bfloat16"):
            found, costs[dtype] = measure(gguf_file, folder, dtype, options)
            rows += found
    figures = {
        "model": gguf_file.name,
        "executor": arguments.executor,
        "prompt_tokens": PROMPT_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "threads": threads,
        "llama_cpp": about,
        "costs": costs,
        "rows": rows,
    }
    packages = ("torch", "transformers", "safetensors", "gguf", "httpx")
    return record.write("engine", figures=figures, bars=bars(rows, costs), repeats=arguments.repeats, packages=packages)


if __name__ == "__main__":
    sys.exit(main())
