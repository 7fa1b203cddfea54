"""Sleeps in epoll until a descriptor or a signal has something to say. One thread, no polling.

Invariant: a callback runs for the registration it was made for, also when its descriptor was closed and used again in between.
"""

from __future__ import annotations

import math
import os
import select
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Callback = Callable[[], None]


@dataclass
class EventLoop:
    """Also owns the process's handlers of the signals that it watches."""

    _epoll: select.epoll = field(default_factory=select.epoll)
    _callbacks: dict[int, Callback] = field(default_factory=dict)
    _wakeup: int = -1

    def watch(self, descriptor: int, callback: Callback, *, events: int = select.EPOLLIN) -> None:
        """Call back whenever ``descriptor`` is ready; events 0 = only when its other side has closed."""
        self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def forget(self, descriptor: int) -> None:
        """Before the descriptor is closed."""
        del self._callbacks[descriptor]
        self._epoll.unregister(descriptor)

    def watch_signals(self, numbers: Iterable[signal.Signals], callback: Callable[[int], None]) -> None:
        """Signals become bytes in a pipe, so that they are handled in turn like everything else."""
        self._wakeup, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

        def arrived() -> None:
            for number in os.read(self._wakeup, 4096):
                callback(number)

        self.watch(self._wakeup, arrived)

    def wait(self, timeout_seconds: float) -> list[Callback]:
        """Sleep until something is ready or the time is over (infinite = no limit); what is to be called, in the kernel's order."""
        ready = self._epoll.poll(None if timeout_seconds == math.inf else max(0.0, timeout_seconds))
        return [self._guarded(descriptor, self._callbacks[descriptor]) for descriptor, _ in ready]

    def _guarded(self, descriptor: int, callback: Callback) -> Callback:
        def call() -> None:
            if self._callbacks.get(descriptor) is callback:
                callback()

        return call
