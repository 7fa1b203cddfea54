"""A whole engine from its command line, with a simulated model: what tests and benchmarks start, ask and end.

Invariant: however its user ends, :func:`end` leaves no process. Does not judge what it answers.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

SOURCES = Path(__file__).parents[1] / "engine_image"
DEADLINE_SECONDS = 60.0
LIMIT = 512
"""Of its context, unless flags say otherwise."""
SIMULATED = ("-m", "enginehouse_engine", "--executor", "Simulated", "--model", "", "--served-model-name", "sim")


@dataclass
class Engine:
    """A running engine; ``log`` holds what its processes said."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def figures(self) -> dict[str, float]:
        """Unlabelled samples of a scrape."""
        text = httpx.get(f"{self.url}/metrics").text
        return {name: float(value) for name, value in re.findall(r"^([a-z_:]+) (\S+)$", text, re.MULTILINE)}

    def idle(self) -> bool:
        figures = self.figures()
        return figures["enginehouse_requests_running"] == figures["enginehouse_requests_waiting"] == 0

    def pid(self, process: str) -> int:
        """Of the newest incarnation of a process that the launcher has started, such as ``engine core of rank 0``."""
        return int(re.findall(rf"started {process}, pid (\d+)", self.log.read_text())[-1])

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS)


def start(folder: Path, *flags: str, arguments: tuple[str, ...] = SIMULATED) -> Engine:
    """Wait until it says that it is ready, and where."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                *arguments,
                "--port",
                "0",
                "--max-context-length",
                str(LIMIT),
                "--memory-limit-bytes",
                str(1 << 30),
                *flags,
            ],
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := re.search(r"^ready: (https?://\S+),", log.read_text(), re.MULTILINE)):
        if process.poll() is not None or time.monotonic() >= deadline:
            process.kill()
            raise RuntimeError(f"the engine is not ready (exit code {process.poll()}): {log.read_text()}")
        time.sleep(0.02)
    return Engine(process, found[1], log)


def end(engine: Engine) -> None:
    """However the test went, nothing stays."""
    if engine.process.poll() is None:
        engine.process.send_signal(signal.SIGTERM)
    try:
        engine.process.wait(DEADLINE_SECONDS)
    finally:
        engine.process.kill()
