"""An actor manager in a process of its own; the test is its launcher, which says what it wants and keeps what it hears."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enginehouse_engine import config as configuration
from enginehouse_engine.config import EngineConfig, ParallelConfig
from ray_nodes import RayNodes

PATIENCE_SECONDS = 60.0
RUN = Path(__file__).parent / "unit/ray/run_actor_manager.py"


class ActorManagerProcess:
    """Registered and connected to Ray when it is constructed."""

    def __init__(self, nodes: RayNodes, folder: Path, *, uid: str = "uid") -> None:
        self._nodes = nodes
        self.first = 1
        """Incarnation of the ranks of the present test: what an earlier one left behind is not found."""
        self._lists = 0
        """How many the manager was told."""
        self.heard: list[dict[str, Any]] = []
        self.log = folder / "manager.log"
        config = EngineConfig(
            replica_uid=uid,
            model_path="",
            model_uri="",
            served_model_name="m",
            executor="Ray",
            parallel=ParallelConfig(tensor=2),
            memory_budget_bytes=1,
        )
        configuration.save(config, folder / "config.json")
        self._sockets = tempfile.TemporaryDirectory(prefix="test-")  # short, as a socket's path has to be
        path = Path(self._sockets.name) / "launcher.sock"
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.bind(str(path))
        server.listen()
        server.settimeout(PATIENCE_SECONDS)
        arguments = ["--launcher-socket", str(path), "--config", str(folder / "config.json"), "--address", nodes.address]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(RUN), *arguments],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_MODE": "disabled"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._connection, _ = server.accept()
        server.close()
        self._connection.settimeout(PATIENCE_SECONDS)
        data, self._descriptors, _, _ = socket.recv_fds(self._connection, 65536, 4)
        self.registration = json.loads(data)
        self._say(type="registered", message="")
        self.hear(lambda message: message.get("stage") == "serve")

    def rank(self, number: int, *, members: tuple[int, ...] = (0,), after: int = 0, **more: Any) -> dict[str, Any]:
        """One element of the list; ``after`` so many incarnations."""
        return {"rank": number, "incarnation": self.first + after, "members": list(members), **more}

    def want(self, *ranks: dict[str, Any], strategy: str = "Pack", engine: str = "e") -> None:
        """The whole list."""
        self._lists += 1
        wanted = {"engine": engine, "strategy": strategy, "resource": "accelerator", "ranks": list(ranks)}
        self._say(type="actors", number=self._lists, **wanted)

    def stop(self) -> int:
        self._say(type="stop")
        return self.process.wait(PATIENCE_SECONDS)

    def hear(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message that is wanted; all are kept."""
        while True:
            assert select.select([self._connection], [], [], PATIENCE_SECONDS)[0], f"{self.heard}\n{self.log.read_text()}"
            data = self._connection.recv(65536)
            assert data, f"{self.heard}\n{self.log.read_text()}"
            self.heard.append(json.loads(data))
            if wanted(self.heard[-1]):
                return self.heard[-1]

    def placement(self, *states: str) -> list[dict[str, Any]]:
        """Until the manager knows the newest list and its ranks are in these states; now, if they are."""

        def as_wanted(said: dict[str, Any]) -> bool:
            is_newest = said["type"] == "placement" and said["number"] == self._lists
            return is_newest and [rank["state"] for rank in said["ranks"]] == list(states)

        last = next((said for said in reversed(self.heard) if said["type"] == "placement"), None)
        return list((last if last and as_wanted(last) else self.hear(as_wanted))["ranks"])

    def clear(self) -> None:
        """Want nothing any more, and forget all that was."""
        self.want()
        self.placement()
        self.heard.clear()
        self.first += 10

    def ended(self) -> dict[str, Any]:
        """The next that has."""
        return self.hear(lambda said: said["type"] == "ended")

    def pid_of(self, role: str, rank: int, index: int = 0, *, after: int = 0, member: int = 0) -> int:
        """Of an actor that runs; waits for it."""
        path = self.file(role, rank, index, after=after, member=member).with_suffix(".pid")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (path.exists() and path.read_text()):
            assert time.monotonic() < deadline, f"{path}\n{self.heard}\n{self.log.read_text()}"
            time.sleep(0.01)
        return int(path.read_text())

    def have(self, word: str, role: str, rank: int, index: int = 0) -> None:
        """An actor that runs do something: ``exit N`` or ``raise``."""
        self.pid_of(role, rank, index)
        self.file(role, rank, index).with_suffix(".fifo").write_text(word)

    def file(self, role: str, rank: int, index: int = 0, *, after: int = 0, member: int = 0) -> Path:
        """What an actor writes of itself, without its suffix."""
        return self._nodes.run_directory(member) / f"{role}-{rank}-{index}-{self.first + after}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._connection.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._sockets.cleanup()

    def _say(self, **message: Any) -> None:
        self._connection.send(json.dumps(message).encode())
