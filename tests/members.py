"""The launchers of one replica with several members, each a real process on an address of its own, with simulated models.

Invariant: however a test ends, no process stays: each launcher's children die with it.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from enginehouse_engine.executor.simulated import simulated_answer
from logged_process import LoggedProcess
from running_engine import SIMULATED, SOURCES

DEADLINE_SECONDS = 60.0
PROMPT = list(b"What is the answer?")


class Member(LoggedProcess):
    """One launcher; its log holds what its processes said, too."""

    def __init__(self, log: Path, *flags: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *SIMULATED, *flags],
                env={**os.environ, "PYTHONPATH": str(SOURCES)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"started .*, pid (\d+)", self.text())]

    def kill(self, name: str) -> None:
        """SIGKILL to a process that it has started."""
        os.kill(int(self.until(rf"started {name}, pid (\d+)")[1]), signal.SIGKILL)

    def exit_code(self) -> int:
        return self.process.wait(self.patience_seconds)


class Members:
    """A replica to be; members are started one by one."""

    def __init__(self, folder: Path, *, members: int, workers_each: int, data: int = 1, tensor: int = 1, pipeline: int = 1) -> None:
        self._folder = folder
        self._all: list[Member] = []
        # Every address of 127.0.0.0/8 is this machine's: a fresh one for each replica, since the port is always the same.
        self.leader_address = f"127.{secrets.randbelow(250) + 1}.{secrets.randbelow(250) + 1}.{secrets.randbelow(250) + 1}"
        self._count = members
        self._flags = [
            f"--members={members}",
            f"--workers-per-member={workers_each}",
            f"--leader={self.leader_address}",
            f"--data-parallel={data}",
            f"--tensor-parallel={tensor}",
            f"--pipeline-parallel={pipeline}",
            "--port=0",
            "--memory-limit-bytes=2000000000",
        ]

    def start(self, number: int, *flags: str, replica_uid: str = "replica") -> Member:
        log = self._folder / f"member-{len(self._all)}.log"
        self._all.append(Member(log, *self._flags, f"--member={number}", f"--replica-uid={replica_uid}", *flags))
        return self._all[-1]

    def start_all(self, *flags: str) -> list[Member]:
        """Serving."""
        members = [self.start(number, *flags) for number in range(self._count)]
        for member in members:
            member.until("ready after")
        return members

    def close(self) -> None:
        for member in self._all:
            member.process.kill()
            member.process.wait()


def ask(leader: Member, *, tokens: int = 24) -> httpx.Response:
    url = leader.until(r"^ready: (http://\S+),")[1]
    body = {"model": "sim", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=DEADLINE_SECONDS)


def expected_text(*, tokens: int = 24) -> str:
    return bytes(simulated_answer(PROMPT, tokens)).decode()


def left(pids: list[int]) -> list[int]:
    """Those that still live, after a moment for the kernel to end them."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (living := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return living
