"""The launcher's link to the monitor, which may restart at any time (``docs/wire-protocol.md`` section 3).

Invariant: level-triggered. What the monitor has to know is kept here, and every new connection hands all of it over, so that
nothing depends on which messages the last one took. Without a monitor (stand-alone) nobody listens and nothing is missing.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from enginehouse_engine.launcher import datagrams, messages
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.process import Process

logger = logging.getLogger("enginehouse.launcher")

FIRST_RETRY_SECONDS: Final = 0.05
LONGEST_RETRY_SECONDS: Final = 1.0
_DEATHS_KEPT: Final = 8


@dataclass(frozen=True)
class _Handed:
    message: dict[str, Any]
    descriptors: tuple[int, ...]


@dataclass
class MonitorLink:
    """``path`` empty = stand-alone. ``own_pipe`` is the read end of the launcher's own pipe."""

    path: str
    own_pipe: int
    loop: EventLoop
    heard: Callable[[messages.FromMonitor], None]

    retry_at: float = math.inf
    """When :meth:`connect` is due, on the clock that it is given."""
    _connection: socket.socket | None = None
    _tried_at: float = -math.inf
    _retry_seconds: float = FIRST_RETRY_SECONDS
    """From one try to the next; longer each time until the monitor has said something."""
    _processes: dict[Process, _Handed] = field(default_factory=dict)
    _deaths: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_DEATHS_KEPT))
    _state: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.path:
            self.retry_at = -math.inf

    def connect(self, now: float) -> None:
        """Connect if it is due, and hand everything over. The monitor may not listen yet: then it is tried again."""
        if now < self.retry_at:
            return
        self._tried_at = now
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            connection.connect(self.path)
        except OSError as error:
            connection.close()
            if self._retry_seconds == FIRST_RETRY_SECONDS:
                logger.info("the monitor at %s is not there yet: %s", self.path, error)
            self._try_later()
            return
        self.retry_at = math.inf
        self._connection = connection
        self.loop.watch(connection.fileno(), self._read)
        self._send({"type": "hello", "version": messages.VERSION, "pid": os.getpid()}, (self.own_pipe,))
        for handed in self._processes.values():
            self._send(handed.message, handed.descriptors)
        for death in self._deaths:
            self._send(death)
        if self._state is not None:
            self._send(self._state)

    def process(self, process: Process, *, pid: int, descriptors: tuple[int, ...]) -> None:
        """A process that registered. The descriptors stay the caller's, open until :meth:`exited`."""
        identity = {"role": process.role, "rank": process.rank, "index": process.index, "incarnation": process.incarnation}
        handed = _Handed(message={"type": "process", **identity, "pid": pid}, descriptors=descriptors)
        self._processes[process] = handed
        self._send(handed.message, handed.descriptors)

    def exited(self, process: Process, message: dict[str, Any]) -> None:
        """A process is gone, or could not be started. Deaths are told again to a new monitor, planned exits are not."""
        self._processes.pop(process, None)
        if not message["planned"]:
            # A row keeps the evidence of the newest; of all together a new monitor would be handed more than a socket takes.
            for death in self._deaths:
                death.pop("evidence", None)
            self._deaths.append(dict(message))
        self._send(message)

    def state(self, message: dict[str, Any]) -> None:
        """The engine's whole state; sent only when it changed."""
        if message != self._state:
            self._state = message
            self._send(message)

    def _send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        if self._connection is None:
            return
        try:
            datagrams.send(self._connection, message, descriptors)
        except datagrams.Closed as error:
            logger.warning("the monitor is gone, trying again: %s", error)
            self._disconnect()

    def _read(self) -> None:
        while self._connection is not None:
            try:
                datagram = datagrams.receive(self._connection)
                if datagram is None:
                    return
                datagrams.close_all(datagram.descriptors)
                message = messages.decode_from_monitor(datagram.data)
            except datagrams.Closed as error:
                logger.warning("the monitor is gone, trying again: %s", error)
                self._disconnect()
            except messages.MessageError as error:
                logger.error("ignored a message of the monitor: %s", error)
            else:
                self._retry_seconds = FIRST_RETRY_SECONDS
                if message is not None:
                    self.heard(message)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self.loop.forget(self._connection.fileno())
            self._connection.close()
            self._connection = None
            self._try_later()

    def _try_later(self) -> None:
        self.retry_at = self._tried_at + self._retry_seconds
        self._retry_seconds = min(LONGEST_RETRY_SECONDS, 2 * self._retry_seconds)
