"""What a reader gets, and what every reader can do, whichever transport it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from enginehouse_engine.message_queue.address import QueueAddress


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

    address: QueueAddress
    first_sequence: int
    """The first message that this reader gets."""

    @abstractmethod
    def receive(self, *, deadline_seconds: float) -> Received:
        """The next message, in order, each exactly once.

        Raises NothingReceived at the deadline, QueueClosed, WriterGone, ReaderDismissed, QueueCancelled and QueueCorrupt. After one
        of the last five nothing more comes.
        """

    @abstractmethod
    def take(self, *, spin: bool = False) -> Received | None:
        """The next message if it is there, else None; for whoever waits for several readers at once.

        After None :meth:`fileno` becomes readable with the next message, and with everything that :meth:`receive` raises but
        NothingReceived; now and then also without a reason. ``spin``: look for the time of a spin, where this transport spins.
        """

    @abstractmethod
    def fileno(self) -> int:
        """For a poller. Says something only after :meth:`take` has returned None."""

    @abstractmethod
    def cancel(self) -> None:
        """Have the present and every later call raise QueueCancelled. From any thread, also from a signal handler."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; the writer then no longer waits for this reader. May be called twice."""
