"""How both ends wait: look for at most 50 us, then sleep in the kernel until an event.

The event is an eventfd, not a futex: one sleep then also ends by the peer's death (end of file on its socket), by a cancel from
another thread, and by a remote reader, and nobody has to wake up now and then to look. The price, a system call for each sleeper
instead of one for all, is paid only for those that sleep.

No wake-up is lost. Who wants to sleep says so in shared memory, passes a fence, looks once more, and sleeps; who has news stores
them, passes a fence, and looks whether somebody sleeps. With a full fence on both sides at least one of them sees the other. What
the signal brings is counted by the kernel until it is read, so one that comes between the look and the sleep ends the sleep at
once.

A spin that finds nothing makes things worse: on a processor that both ends share it keeps the other from answering. So after one
the next wait sleeps at once, after another the next two, and so on up to 64; a spin that finds something starts over.

Invariant: after the spin no CPU is used until an event or the deadline.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

SPIN_SECONDS: Final = 50e-6
_MOST_WAITS_WITHOUT_SPIN: Final = 64


class SpinBudget:
    """Whether the next wait spins: for one end of one queue."""

    __slots__ = ("_next_pause", "_pause")

    def __init__(self) -> None:
        self._pause = 0
        self._next_pause = 1

    def seconds(self) -> float:
        """How long the wait that begins now may spin: ``SPIN_SECONDS`` or not at all."""
        if self._pause:
            self._pause -= 1
            return 0.0
        return SPIN_SECONDS

    def found(self) -> None:
        self._next_pause = 1

    def missed(self) -> None:
        self._pause = self._next_pause
        self._next_pause = min(2 * self._next_pause, _MOST_WAITS_WITHOUT_SPIN)


class Signal:
    """An eventfd: any thread or process that has it sets it, its owner sleeps on it and takes it back."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if descriptor is None else descriptor

    def set(self) -> None:
        # Full (2**64 - 2 unread signals) means set.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.descriptor, 1)

    def take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def seconds_left(deadline: float) -> float:
    """Until a point of ``time.monotonic``, never negative."""
    return max(0.0, deadline - time.monotonic())
