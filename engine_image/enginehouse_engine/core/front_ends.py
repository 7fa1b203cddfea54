"""The core's sockets: one DEALER to every front end, connected and disconnected as the launcher's list says.

Invariant: the first message on every socket is ``Hello``; nothing here ever blocks.
Does not know what a request means (``loop.py``).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import zmq

from enginehouse_engine.protocol import FromCore, Hello, StepStats, ToCore, decode_to_core, encode

_LINGER_MILLISECONDS: Final = 200


@dataclass(slots=True)
class _FrontEnd:
    endpoint: str
    socket: zmq.Socket[bytes]
    welcomed: bool = False


class FrontEnds:
    """Front ends by their index. A front end that was replaced has the same index and another endpoint."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller, hello: Hello) -> None:
        self._context = context
        self._poller = poller
        self._hello = hello
        self._front_ends: dict[int, _FrontEnd] = {}

    def update(self, endpoints: Mapping[int, str], stats: StepStats) -> list[int]:
        """Connect to the new ones and let go of the others; the indices whose requests nobody waits for any more.

        ``stats`` are the figures of now: a front end that comes late begins with them.
        """
        gone = [index for index, known in self._front_ends.items() if endpoints.get(index) != known.endpoint]
        for index in gone:
            front_end = self._front_ends.pop(index)
            self._poller.unregister(front_end.socket)
            front_end.socket.close(linger=0)
        for index, endpoint in endpoints.items():
            if index not in self._front_ends:
                self._front_ends[index] = _FrontEnd(endpoint, self._connect(endpoint, stats))
        return gone

    def __len__(self) -> int:
        return len(self._front_ends)

    def indices(self) -> list[int]:
        return list(self._front_ends)

    def unwelcomed(self) -> list[str]:
        """Endpoints that have not answered the Hello."""
        return [front_end.endpoint for front_end in self._front_ends.values() if not front_end.welcomed]

    def welcome(self, index: int) -> None:
        self._front_ends[index].welcomed = True

    def receive(self, ready: Container[object]) -> Iterator[tuple[int, ToCore]]:
        """Everything that has arrived on the sockets that are ``ready``. Raises ProtocolError."""
        for index, front_end in list(self._front_ends.items()):
            while front_end.socket in ready:
                try:
                    frames = front_end.socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                yield index, decode_to_core(frames)

    def send(self, index: int, message: FromCore) -> None:
        """Queue a message. Never blocks: what a stalled front end leaves lying grows by each step's figures."""
        self._front_ends[index].socket.send(encode(message), zmq.NOBLOCK)

    def close(self) -> None:
        """Give what was sent a moment to leave, then close."""
        for front_end in self._front_ends.values():
            front_end.socket.close(linger=_LINGER_MILLISECONDS)
        self._front_ends.clear()

    def _connect(self, endpoint: str, stats: StepStats) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.IDENTITY, f"{self._hello.rank}-{self._hello.incarnation}".encode())
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        socket.send(encode(msgspec.structs.replace(self._hello, stats=stats)), zmq.NOBLOCK)
        return socket
