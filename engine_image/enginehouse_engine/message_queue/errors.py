"""What can go wrong between a writer and its readers; every error names the queue and who was waited for."""

from __future__ import annotations


class QueueError(Exception):
    """The base of all of them."""


class SharedMemoryTooSmall(QueueError):
    """The volume has no room for the ring."""


class MessageTooLarge(QueueError):
    """More bytes or more frames than a message may have."""


class NothingReceived(QueueError):
    """No message by the deadline; the queue is sound and the next call may find one."""


class ReadersMissing(QueueError):
    """Readers that had not attached by the deadline: ``names``."""

    def __init__(self, message: str, *, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.names = names


class ReadersBehind(QueueError):
    """Readers that left no room by the deadline: ``names``. Nobody got the message; it may be sent again."""

    def __init__(self, message: str, *, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.names = names


class ReaderRefused(QueueError):
    """The writer does not want this reader: unknown, outdated, or meant for another queue."""


class ReaderDismissed(QueueError):
    """The writer has given this reader up; what was sent after that, it will not get."""


class WriterGone(QueueError):
    """The writer died, or cannot be reached. Everything it had finished sending was received first (on this node)."""


class QueueClosed(QueueError):
    """The writer closed the queue in order; everything it sent was received first."""


class QueueCancelled(QueueError):
    """This end was cancelled by its own process."""


class QueueCorrupt(QueueError):
    """Bytes that no writer of this queue writes: a wrong tag, an impossible length, a sequence number out of turn."""
