"""make bench NAME=refusal: how long a request that is one token over the context waits for its refusal, beside running requests.

The one job: time the 400 of 2,049 tokens at a limit of 2,048, as a text and as token ids, while the engine computes the answers of
others; without a bar, the same for texts and bodies that are far too long, and what those cost somebody else's refusal.
The running requests' answers stay unread in the sockets' buffers: their clients take no processor time from the engine.
The invariant kept: every request that is timed is refused for its length, and the others still run when the last one was.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import record

from localkube import model
from localkube.paths import CachePaths, cache_root

LIMIT = 2048
RUNNING = 8
REPEATS = 3
REFUSALS = 200
"""Of each kind in a repeat; a tenth of those that are far too long."""
READY_SECONDS = 120.0
P50_SECONDS = 0.010
P99_SECONDS = 0.050

TEXT = {"prompt": " hello" * (LIMIT - 15), "max_tokens": 16}
IDS = {"prompt": [1000] * (LIMIT - 15), "max_tokens": 16}
LONG_TEXT = {"prompt": "It was a bright cold day in April. " * 4_000}
"""140,000 characters: few enough that the longest tokens could make it fit."""
LONG_IDS = {"prompt": [1] * 1_300_000}
"""A body of nearly 4 MiB."""

Kinds = dict[str, dict[str, Any]]
BARRED: Kinds = {"text of 2049 tokens": TEXT, "2049 token ids": IDS}
FAR: Kinds = {"text of 140,000 characters": LONG_TEXT, "1,300,000 token ids": LONG_IDS}


@contextmanager
def running_engine(gguf_file: Path) -> Iterator[int]:
    """Its port."""
    command = [sys.executable, "-m", "enginehouse_engine", "--model", str(gguf_file), "--port", "0", "--served-model-name", "m"]
    command += ["--max-context-length", str(LIMIT), "--startup-timeout-seconds", str(READY_SECONDS)]
    record.FOLDER.mkdir(parents=True, exist_ok=True)
    log = record.FOLDER / "refusal.log"
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not (found := re.match(r"ready: http://\S+:(\d+), context length 2048$", line)):
                raise RuntimeError(f"the engine did not become ready with a context of {LIMIT} tokens: {line!r}, see {log}")
            yield int(found[1])
        finally:
            # Twice: the answers that nobody reads are not worth waiting for.
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps({"model": "m", **body}).encode()
    return f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


@contextmanager
def others(port: int) -> Iterator[None]:
    """Requests that run all the time; their answers are as long as the context allows."""
    with ExitStack() as stack:
        for number in range(RUNNING):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            body = {"prompt": [100 + number], "max_tokens": LIMIT - 1, "ignore_eos": True, "stream": True}
            connection.sendall(request(body))
            connection.recv(1)
        check_running(port)
        yield
        check_running(port)


def check_running(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    if f"\nenginehouse_requests_running {RUNNING}.0\n" not in text:
        raise RuntimeError(f"{RUNNING} requests were to run beside; found {re.findall(r'enginehouse_requests_running .*', text)}")


def refuse(port: int, body: dict[str, Any], count: int) -> list[float]:
    """Seconds from the first byte sent to the last one received, one after another on one connection."""
    data = json.dumps({"model": "m", **body}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request("POST", "/v1/completions", data)
        response = connection.getresponse()
        answer = response.read()
        seconds.append(time.perf_counter() - began)
        if response.status != 400 or json.loads(answer)["error"]["code"] != "context_length_exceeded":
            raise RuntimeError(f"a refusal for its length was expected, found {response.status}: {answer[:200]!r}")
    connection.close()
    return seconds


def beside(port: int, far: dict[str, Any], count: int) -> list[float]:
    """The same of 2,049 token ids while another client sends what is far too long, again and again."""
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            refuse(port, far, 1)

    other = threading.Thread(target=send)
    other.start()
    try:
        return refuse(port, IDS, count)
    finally:
        ended.set()
        other.join()


def summary(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": round(cuts[49] * 1e3, 3), "p99_ms": round(cuts[98] * 1e3, 3), "max_ms": round(max(seconds) * 1e3, 3)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=REPEATS)
    repeats = parser.parse_args().repeats
    gguf_file = model.ensure(CachePaths(cache_root()))
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        with running_engine(gguf_file) as port, others(port):
            for kind, body in BARRED.items():
                times.setdefault(kind, []).extend(refuse(port, body, REFUSALS))
            for kind, body in FAR.items():
                times.setdefault(kind, []).extend(refuse(port, body, REFUSALS // 10))
                times.setdefault(f"2049 token ids beside {kind}", []).extend(beside(port, body, REFUSALS // 4))
    figures = {kind: summary(seconds) for kind, seconds in times.items()}
    for kind, row in figures.items():
        print(f"{kind}: p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms, longest {row['max_ms']} ms")
    bars = []
    for kind in BARRED:
        bars.append(record.at_most(f"{kind}, refused: p50", figures[kind]["p50_ms"], limit=P50_SECONDS * 1e3, unit="ms"))
        bars.append(record.at_most(f"{kind}, refused: p99", figures[kind]["p99_ms"], limit=P99_SECONDS * 1e3, unit="ms"))
    return record.write(
        "refusal",
        figures={"model": gguf_file.name, "limit_tokens": LIMIT, "running_requests": RUNNING, "refusals": figures},
        bars=bars,
        repeats=repeats,
        packages=("tokenizers", "uvicorn", "uvloop", "msgspec"),
    )


if __name__ == "__main__":
    sys.exit(main())
