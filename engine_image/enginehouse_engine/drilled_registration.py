"""A registration that does what it always does, and then the fault that was asked for: all roles tell it their stages anyway.

Invariant: standard library only, as before a process's heavy imports; a fault is logged before it happens; the rest of the process
knows of no drills. Does not kill from outside: whoever wants that lets the process ``hold`` and sends it a signal.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from enginehouse_engine.drill import DRAIN, SERVING, parse
from enginehouse_engine.registration import Registration

logger = logging.getLogger("enginehouse.drill")

HOLD_SECONDS: Final = 120.0
_CHUNK_BYTES: Final = 16 << 20
_FIRST_VICTIM: Final = "1000"
"""The highest ``oom_score_adj`` of proc(5): whatever else needs memory, this process is the one that the kernel ends."""


class DrilledRegistration(Registration):
    """Takes the place of the registration that it is made from, in the main thread."""

    def __init__(self, registration: Registration, drills: Sequence[str]) -> None:
        super().__init__(registration._control, registration._write_end)
        self._faults: Mapping[str, str] = {drill.phase: drill.fault for drill in map(parse, drills)}
        if SERVING in self._faults:
            signal.signal(signal.SIGUSR1, lambda number, frame: self._act(SERVING))

    def stage(self, name: str) -> None:
        super().stage(name)
        self._act(name)

    def receive(self, timeout_seconds: float | None = 0.0) -> dict[str, Any] | None:
        message = super().receive(timeout_seconds)
        if message is not None and message["type"] in ("drain", "stop"):
            self._act(DRAIN)
        return message

    def _act(self, phase: str) -> None:
        fault = self._faults.get(phase)
        if fault is not None:
            logger.warning("drill: %s in phase %s", fault, phase)
            _FAULTS[fault]()


def _hold() -> None:
    time.sleep(HOLD_SECONDS)


def _allocate() -> None:
    """Touched, so that the kernel has to find it."""
    Path("/proc/self/oom_score_adj").write_text(_FIRST_VICTIM)
    held = []
    while True:
        held.append(b"\1" * _CHUNK_BYTES)


_FAULTS: Final[Mapping[str, Callable[[], None]]] = {
    "hold": _hold,
    "exit-0": lambda: os._exit(0),
    "exit-1": lambda: os._exit(1),
    "allocate": _allocate,
}
