"""The phases of an engine, how long they may last, and the protocol's words for member and units in each. Pure.

Does not say what leads from one to the next: ``lifecycle.py`` does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from enginehouse_engine.launcher.unit import UnitState

SETTLE_SECONDS: Final = 5.0
"""In a pod: how long requests are still accepted, since endpoints elsewhere hear of the end later than the pod does."""
DRAIN_MARGIN_SECONDS: Final = 5.0
"""Beyond the drain timeout, for the answer to arrive."""
STOP_SECONDS: Final = 10.0
"""From ``stop`` to SIGKILL in an orderly end."""
STOP_AFTER_DEATH_SECONDS: Final = 2.0
"""The same after a death: time for the API servers to fail their requests with an error."""
REAP_SECONDS: Final = 60.0
"""From SIGKILL to giving up on a process that the kernel does not let go; releasing much memory takes seconds."""


class Phase(StrEnum):
    """Starting -> Serving -> Draining -> Stopping -> Ended; each may lead to Stopping."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"
    ENDED = "ended"


def member_word(phase: Phase, *, ends_badly: bool) -> str:
    """The state of the pod's row."""
    if ends_badly:
        return "Failed"
    return {Phase.STARTING: "Starting", Phase.SERVING: "Serving", Phase.ENDED: "Ended"}.get(phase, "Draining")


def unit_word(phase: Phase, state: UnitState, *, ends_badly: bool) -> str:
    """The state of one rank or API server in it."""
    if ends_badly or state is UnitState.DEAD:
        return UnitState.DEAD.value
    return state.value if phase in (Phase.STARTING, Phase.SERVING) else UnitState.DRAINING.value
