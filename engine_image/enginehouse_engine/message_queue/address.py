"""Where a queue can be found, as its writer publishes it after it has bound everything.

Invariant: an address is of one generation of one queue: whoever comes with an old one is refused, never connected to another.
"""

from __future__ import annotations

import msgspec


class QueueAddress(msgspec.Struct, frozen=True):
    """Published once, passed to every reader: in its configuration, in a handshake, by a broker."""

    queue: str
    """What the queue is for; for people."""
    writer: str
    """Identity of the writing process, like ``rank 0 core``."""
    generation: int
    """How many writers have had this queue before, plus one."""
    key: str
    """Random, in hexadecimal: what a reader has to know to attach."""
    local: str
    """Name of the writer's abstract UNIX socket."""
    remote: str = ""
    """``tcp://host:port``, or nothing when there are no remote readers."""

    @property
    def tag(self) -> bytes:
        """What marks each of this writer's messages: 8 bytes."""
        return bytes.fromhex(self.key)[:8]

    def __str__(self) -> str:
        return f"queue {self.queue!r} of {self.writer} (generation {self.generation})"
