"""The monitor's side of its socket: hears what a launcher says, and says what a test wants."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launched_engine import DEADLINE_SECONDS


class FakeMonitor:
    """Listens from construction on."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server.bind(str(path))
        self.server.listen()
        self.server.settimeout(DEADLINE_SECONDS)
        self.descriptors: list[int] = []

    def accept(self) -> None:
        self.connection, _ = self.server.accept()
        self.connection.settimeout(DEADLINE_SECONDS)

    def say(self, **message: Any) -> None:
        self.connection.send(json.dumps(message).encode())

    def hear(self) -> tuple[dict[str, Any], int]:
        """A message, and how many descriptors came with it."""
        data, descriptors, _, _ = socket.recv_fds(self.connection, 65536, 4)
        assert data, "the launcher closed the socket"
        self.descriptors += descriptors
        return json.loads(data), len(descriptors)

    def hear_until(self, wanted: Callable[[dict[str, Any]], bool]) -> list[tuple[dict[str, Any], int]]:
        heard = [self.hear()]
        while not wanted(heard[-1][0]):
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        self.connection.close()
        self.server.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


def is_state(state: str) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message.get("state") == state
