"""A whole engine beside a monitor that a test speaks for: what its row would say, and how many processes and descriptors it has.

Invariant: the monitor's socket is read all the time, so that the launcher never waits for it. Does not judge.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_monitor import FakeMonitor
from running_engine import SIMULATED, end, start

DEADLINE_SECONDS = 60.0


class Row:
    """What a launcher tells its monitor, from construction on. ``states``: the newest last; ``exits``: the ends of processes.

    ``at_once``: ranks that are wanted before anything has started.
    """

    def __init__(self, path: Path, *, at_once: int | None = None) -> None:
        self.states: list[dict[str, Any]] = []
        self.exits: list[dict[str, Any]] = []
        self._at_once = at_once
        self._monitor = FakeMonitor(path)
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """When the launcher has ended."""
        self._thread.join(DEADLINE_SECONDS)
        self._monitor.close()

    def resize(self, ranks: int) -> None:
        self._monitor.say(type="resize", data=ranks)

    def ranks(self) -> list[tuple[int, int, str]]:
        """Number, incarnation and state of each, as told last."""
        return [(rank["rank"], rank["incarnation"], rank["state"]) for rank in self.states[-1]["ranks"]] if self.states else []

    def _hear(self) -> None:
        self._monitor.accept()
        if self._at_once is not None:
            self.resize(self._at_once)
        self._monitor.say(type="stored")
        # Its end is the end of the launcher.
        with contextlib.suppress(AssertionError, OSError):
            while True:
                message, _ = self._monitor.hear()
                if message["type"] == "state":
                    self.states.append(message)
                elif message["type"] == "exited":
                    self.exits.append(message)


class MonitoredEngine(Row):
    """``engine`` serves."""

    def __init__(self, folder: Path, *flags: str, at_once: int | None = None, arguments: tuple[str, ...] = SIMULATED) -> None:
        super().__init__(folder / "monitor", at_once=at_once)
        self.engine = start(folder, "--monitor-socket", str(folder / "monitor"), *flags, arguments=arguments)

    def close(self) -> None:
        end(self.engine)
        super().close()

    def until(self, wanted: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not wanted():
            found = self.states[-1:]
            assert time.monotonic() < deadline, f"waited for {what}, found {found}: {self.engine.log.read_text()[-3000:]}"
            assert self.engine.process.poll() is None or wanted(), f"ended: {self.engine.log.read_text()[-3000:]}"
            time.sleep(0.01)

    def until_ranks(self, *ranks: tuple[int, int, str]) -> None:
        self.until(lambda: self.ranks() == list(ranks), f"ranks {ranks}")

    def children(self) -> dict[int, str]:
        """Of the launcher that live: their command lines."""
        return {pid: _read(pid, "cmdline").replace("\0", " ") for pid in _children(self.engine.process.pid)}

    def holdings(self) -> dict[str, int]:
        """Processes, and descriptors of each that is no engine core's or worker's."""
        servers = [pid for pid, line in self.children().items() if "api.process" in line]
        held = [len(os.listdir(f"/proc/{pid}/fd")) for pid in (self.engine.process.pid, *servers)]
        return {"processes": len(self.children()), "descriptors": sum(held)}


def _children(pid: int) -> list[int]:
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def _read(pid: int, file: str) -> str:
    """Empty when it has just gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return ""


def steps(scrape: str) -> dict[int, float]:
    """Computed by each rank, as an API server has heard."""
    return {int(rank): float(value) for rank, value in re.findall(r'enginehouse_engine_steps_total\{rank="(\d+)"\} (\S+)', scrape)}


def text_of(events: str) -> str:
    """Of a completion that was streamed to its end."""
    lines = [line.removeprefix("data: ") for line in events.splitlines() if line]
    assert lines[-1] == "[DONE]", events
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])
