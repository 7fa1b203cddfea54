"""What a reader gets, and what every reader can do, whichever transport it has.

Invariant: what has ended a reader is what each of its later calls raises. Does not know where messages come from.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from enginehouse_engine.message_queue.address import QueueAddress
from enginehouse_engine.message_queue.errors import NothingReceived, QueueCancelled, QueueError
from enginehouse_engine.message_queue.waiting import Signal

_AT_ONCE: Final = 0.0
"""A deadline that has passed."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message. Its frames are the reader's own: they alias neither ring nor socket, and stay when the queue is gone."""

    address: QueueAddress
    """Whose message: queue, writer, generation."""
    sequence: int
    correlation: int
    frames: list[bytearray]


class Reader(ABC):
    """One reader of one queue. Everything but :meth:`cancel` belongs to one thread."""

    first_sequence: int
    """The first message that this reader gets."""

    def __init__(self, address: QueueAddress, *, name: str, signal: Signal) -> None:
        """``signal``: what ends this reader's sleep."""
        self.address = address
        self._name = name
        self._signal = signal
        self._cancelled = False
        self._ended: QueueError | None = None
        """What every later call raises."""

    def receive(self, *, deadline_seconds: float) -> Received:
        """The next message, in order, each exactly once.

        Raises NothingReceived at the deadline, QueueClosed, WriterGone, ReaderDismissed, QueueCancelled and QueueCorrupt. After one
        of the last five nothing more comes.
        """
        message = self._next_unless_ended(time.monotonic() + deadline_seconds, spin=True)
        if message is None:
            raise NothingReceived(f"reader {self._name!r} got nothing from {self.address} by its deadline")
        return message

    def take(self, *, spin: bool = False) -> Received | None:
        """The next message if it is there, else None; for whoever waits for several readers at once.

        After None :meth:`fileno` becomes readable with the next message, and with everything that :meth:`receive` raises but
        NothingReceived; now and then also without a reason. ``spin``: look for the time of a spin, where this transport spins.
        """
        return self._next_unless_ended(_AT_ONCE, spin=spin)

    @abstractmethod
    def fileno(self) -> int:
        """For a poller. Says something only after :meth:`take` has returned None."""

    def cancel(self) -> None:
        """Have the present and every later call raise QueueCancelled. From any thread, also from a signal handler."""
        self._cancelled = True
        self._signal.set()

    @abstractmethod
    def close(self) -> None:
        """Give everything back; the writer then no longer waits for this reader. May be called twice."""

    @abstractmethod
    def _next(self, deadline: float, *, spin: bool) -> Received | None:
        """The next message; None when none came in time. What it raises ends this reader."""

    def _next_unless_ended(self, deadline: float, *, spin: bool) -> Received | None:
        if self._ended is not None:
            raise self._ended
        try:
            return self._next(deadline, spin=spin)
        except QueueError as error:
            self._ended = error
            raise

    def _check_not_cancelled(self) -> None:
        if self._cancelled:
            raise QueueCancelled(f"reader {self._name!r} of {self.address} was cancelled")

    def _mark_closed(self) -> None:
        self._ended = QueueCancelled(f"reader {self._name!r} of {self.address} is closed")
