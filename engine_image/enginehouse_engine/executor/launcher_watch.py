"""A worker's ear for its launcher, in a thread: the main thread imports, loads, waits for other workers or computes meanwhile.

Invariant: whatever the main thread does, ``stop`` and the end of the launcher end the process at once. That costs nothing: a worker
is told to stop when its engine core is gone, holds nothing that outlives it, and the interpreter's own end would wait for torch's
threads.
Does not read what peers have published: the main thread does, where an error can be said.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import Any

from enginehouse_engine.engine_process import EXIT_FAILED
from enginehouse_engine.registration import Registration, RegistrationError

logger = logging.getLogger("enginehouse.worker")


class LauncherWatch:
    """Listens from construction on."""

    def __init__(self, registration: Registration) -> None:
        self._registration = registration
        self._peers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="launcher watch", daemon=True).start()

    def peers(self, *, deadline_seconds: float) -> dict[str, Any] | None:
        """The launcher's ``peers``, or None when it has not come in time."""
        try:
            return self._peers.get(timeout=deadline_seconds)
        except queue.Empty:
            return None

    def _listen(self) -> None:
        try:
            while True:
                message = self._registration.receive(None)
                if message is None:
                    continue
                if message["type"] == "stop":
                    self._registration.bye()
                    os._exit(0)
                if message["type"] == "peers":
                    self._peers.put(message)
        except RegistrationError as error:
            logger.error("%s", error)
            os._exit(EXIT_FAILED)
