"""One rank's processes and their launcher's side, for tests: real processes and sockets, a launcher that only passes records on.

With ``behaviours`` this file is the worker's program and serves an object that stands in for the model's worker.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginehouse_engine import config as configuration
from enginehouse_engine.config import ConfigError, EngineConfig
from enginehouse_engine.executor import worker_process
from enginehouse_engine.executor.contract import StepInput, StepOutput, WorkerProfile
from enginehouse_engine.executor.rendezvous import Peer, peers_of
from enginehouse_engine.executor.simulated import SimulatedExecutor
from enginehouse_engine.executor.worker_process import WorkerStart

PATIENCE_SECONDS = 180.0
"""No test waits longer for anything."""
FOREVER_SECONDS = 600.0
UID = "replica"


class StandIn:
    """A simulated model; one worker answers steps. A behaviour is a method and ``=raise``, ``=hang``, ``=config`` or ``=kill``."""

    def __init__(self, start: WorkerStart, behaviour: str) -> None:
        self.record: dict[str, str] = {}
        self._start = start
        self._model = SimulatedExecutor(start.config)
        workers = start.config.parallel.tensor * start.config.parallel.pipeline
        self._answers = start.index == workers - start.config.parallel.tensor
        self._method, _, self._deed = behaviour.partition("=")
        self._act("make")

    def meet(self, first: dict[str, Any]) -> None:
        self._act("meet")

    def load(self) -> None:
        self._act("load")

    def profile(self) -> WorkerProfile:
        self._act("profile")
        return self._model.determine_available_memory()[0]

    def initialize_kv_cache(self, total_blocks: int) -> None:
        self._act("initialize_kv_cache")
        self._model.initialize_kv_cache(total_blocks)

    def execute_model(self, step: StepInput) -> StepOutput | None:
        self._act("execute_model")
        output = self._model.execute_model(step)
        return output if self._answers else None

    def check_health(self) -> None:
        self._act("check_health")

    def echo(self, *values: Any) -> list[Any]:
        return [self._start.index, *values]

    def _act(self, method: str) -> None:
        if method in (self._method, "make", "meet", "load"):
            self._start.registration.stage(method)
        if method != self._method:
            return
        match self._deed:
            case "hang":
                time.sleep(FOREVER_SECONDS)
            case "raise":
                raise RuntimeError(f"on purpose in worker {self._start.index}")
            case "config":
                raise ConfigError(f"worker {self._start.index} cannot work so")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)


class Rank:
    """The launcher of one rank, as a rendezvous for an executor in this process or for a real engine core."""

    def __init__(
        self, folder: Path, config: EngineConfig, *, behaviours: dict[int, str | None] | None = None, core: bool = False
    ) -> None:
        """``behaviours`` of stand-ins; a None is the model's worker. ``core``: start the real engine core as well."""
        self.config = config
        self.workers = config.parallel.tensor * config.parallel.pipeline
        self.path = str(folder / "launcher")
        configuration.save(config, folder / "engine.json")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen()
        self.controls: dict[tuple[str, int], socket.socket] = {}
        self.pipes: dict[tuple[str, int], int] = {}
        self.pids: dict[tuple[str, int], int] = {}
        self._said: list[tuple[str, int, dict[str, Any]]] = []
        self._news = threading.Condition()
        self._common = [
            "--launcher-socket",
            self.path,
            "--config",
            str(folder / "engine.json"),
            "--rank",
            "0",
            "--incarnation",
            "1",
        ]
        self._behaviours = behaviours
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.processes: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        threading.Thread(target=self._accept, daemon=True).start()
        if core:
            self._start("engine-core", 0, ["-m", "enginehouse_engine.core.process"])

    def start_worker(self, index: int) -> None:
        self._start("worker", index, self.worker_command(index)[1:])

    def start_workers(self) -> None:
        for index in range(self.workers):
            self.start_worker(index)

    def worker_command(self, index: int) -> list[str]:
        behaviour = None if self._behaviours is None else self._behaviours.get(index, "")
        command = ["-m", "enginehouse_engine.executor.worker_process"] if behaviour is None else [__file__, behaviour]
        return [sys.executable, *command, *self._common, "--index", str(index)]

    def _start(self, role: str, index: int, command: list[str]) -> None:
        own = [] if role == "worker" else self._common
        self.processes[role, index] = subprocess.Popen([sys.executable, *command, *own], env=self.environment)

    # The launcher's side

    def said(self, role: str, index: int, type_: str, **fields: Any) -> dict[str, Any]:
        """Wait until a process has said this."""

        def found() -> dict[str, Any] | None:
            for who, number, message in self._said:
                if (who, number, message["type"]) == (role, index, type_) and fields.items() <= message.items():
                    return message
            return None

        with self._news:
            assert self._news.wait_for(lambda: found() is not None, PATIENCE_SECONDS), (
                f"{role} {index} did not say {type_} {fields}"
            )
            message = found()
            assert message is not None
            return message

    def say(self, role: str, index: int, type_: str, **fields: Any) -> None:
        self.controls[role, index].send(json.dumps({"type": type_, **fields}).encode())

    def records(self) -> list[dict[str, Any]]:
        return [{"role": role, "index": index, "record": m["record"]} for role, index, m in self._said if m["type"] == "published"]

    def introduce(self, records: Sequence[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
        """Send everybody's record to everybody that is there."""
        message = {"replicaUid": UID, "rank": 0, "incarnation": 1, "records": records or self.records(), **changes}
        for role, index in list(self.controls):
            self.say(role, index, "peers", **message)
        return message

    def introduce_all(self) -> dict[str, Any]:
        """When all have published."""
        for index in range(self.workers):
            self.said("worker", index, "published")
        self.said("engine-core", 0, "published")
        return self.introduce()

    def exit_code(self, role: str, index: int) -> int:
        return self.processes[role, index].wait(PATIENCE_SECONDS)

    def last_words(self, role: str, index: int) -> bytes:
        return os.read(self.pipes[role, index], 100)

    def kill(self, index: int) -> None:
        os.kill(self.pids["worker", index], signal.SIGKILL)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.listener.close()
        for control in self.controls.values():
            control.close()
        for pipe in self.pipes.values():
            os.close(pipe)

    # The engine core's side: a rendezvous

    def publish(self, record: dict[str, Any]) -> None:
        with self._news:
            self._said.append(("engine-core", 0, {"type": "published", "record": record}))

    def peers(self, *, deadline_seconds: float) -> tuple[Peer, ...]:
        return peers_of(self.introduce_all(), replica_uid=UID, rank=0, incarnation=1)

    def _accept(self) -> None:
        while True:
            try:
                control, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(control,), daemon=True).start()

    def _serve(self, control: socket.socket) -> None:
        data, (pipe, *unused), _, _ = socket.recv_fds(control, 65536, 4)
        for descriptor in unused:
            os.close(descriptor)
        hello = json.loads(data)
        who = hello["role"], hello["index"]
        control.send(b'{"type": "registered"}')
        with self._news:
            self.controls[who], self.pipes[who], self.pids[who] = control, pipe, hello["pid"]
            self._news.notify_all()
        while True:
            try:
                data = control.recv(65536)
            except OSError:
                return
            if not data:
                return
            with self._news:
                self._said.append((*who, json.loads(data)))
                self._news.notify_all()


if __name__ == "__main__":
    chosen = sys.argv.pop(1)
    os._exit(worker_process.main(lambda start: StandIn(start, chosen)))
