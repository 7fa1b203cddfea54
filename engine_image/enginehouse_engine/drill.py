"""Faults on request, with executor Simulated: which fault of which role, at which point of its life.

    --drill ROLE:PHASE:FAULT        (docs/wire-protocol.md section 1)

The launcher hands a drill to the first incarnation of the processes of its role. Does not act: ``drilled_registration.py`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ROLES: Final = ("api-server", "engine-core", "worker")
SERVING: Final = "serving"
DRAIN: Final = "drain"
PHASES: Final = ("import", "load", "handshake", SERVING, DRAIN)
"""The stages of a start; at SIGUSR1, whenever it comes; when the launcher says ``drain`` or ``stop``."""
FAULTS: Final = ("hold", "exit-0", "exit-1", "allocate")
"""To stay there; to exit with a code; to use memory until the kernel ends it."""


@dataclass(frozen=True)
class Drill:
    """One fault of one role."""

    role: str
    phase: str
    fault: str

    def __str__(self) -> str:
        return f"{self.role}:{self.phase}:{self.fault}"


def parse(text: str) -> Drill:
    """``ROLE:PHASE:FAULT``. Raises ValueError, which says what there is."""
    parts = text.split(":")
    known = (ROLES, PHASES, FAULTS)
    if len(parts) != len(known) or any(part not in words for part, words in zip(parts, known, strict=True)):
        raise ValueError(f"{text!r} is not ROLE:PHASE:FAULT, of {', '.join(ROLES)}; {', '.join(PHASES)}; {', '.join(FAULTS)}")
    return Drill(*parts)
