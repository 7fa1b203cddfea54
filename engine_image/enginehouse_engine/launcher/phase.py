"""The phases of an engine, and the protocol's words for member and ranks in each. Pure.

Does not say what leads from one to the next: ``lifecycle.py`` does.
"""

from __future__ import annotations

from enum import StrEnum

from enginehouse_engine.launcher.unit import UnitState


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


def rank_word(phase: Phase, state: UnitState, *, ends_badly: bool) -> str:
    """The state of one rank in it."""
    if ends_badly or state is UnitState.DEAD:
        return UnitState.DEAD.value
    return {Phase.STARTING: UnitState.STARTING.value, Phase.SERVING: state.value}.get(phase, "Draining")
