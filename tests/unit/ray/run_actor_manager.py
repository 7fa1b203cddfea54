"""The real actor manager; its actors do what a test tells them through a FIFO in their node's run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict

from enginehouse_engine.launcher.process import Process
from enginehouse_engine.ray import actor_manager
from enginehouse_engine.ray.actors import EngineActor, Where


class Unreadable(Exception):
    """Cannot be made again from what is pickled of it."""

    def __reduce__(self) -> tuple[object, ...]:
        return open, ("/nonexistent/file",)


class StandIn(EngineActor):
    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._file = self._directory / f"{process.role}-{process.rank}-{process.index}-{process.incarnation}"
        if self._file.with_suffix(".refuses").exists():
            raise ValueError("this actor does not want to be")

    def run(self, workers: Sequence[Where]) -> None:
        if self._file.with_suffix(".unreadable").exists():
            raise Unreadable
        self._file.with_suffix(".workers").write_text(json.dumps([asdict(worker) for worker in workers]))
        super().run(workers)

    def main(self, arguments: list[str]) -> int:
        self._file.with_suffix(".arguments").write_text(json.dumps(arguments))
        fifo = self._file.with_suffix(".fifo")
        os.mkfifo(fifo)
        (self._file.with_suffix(".pid")).write_text(str(os.getpid()))
        what, _, code = fifo.read_text().strip().partition(" ")
        if what == "raise":
            raise ValueError("of this kind")
        return int(code)


if __name__ == "__main__":
    os._exit(actor_manager.main(StandIn))
