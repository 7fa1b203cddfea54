"""Ray in one pod, as a unit of life: its own processes, and in the leader the actor manager, which speaks to it. Pure.

Invariant: it dies as one and never comes back, since actors, placement groups and names die with the head's processes, and a raylet
takes all actors of its pod with it. Does not say what the engine makes of that: ``lifecycle.py`` does.
"""

from __future__ import annotations

from typing import Final

from enginehouse_engine.launcher.actions import Action, Kill
from enginehouse_engine.launcher.process import ACTOR_MANAGER, ENGINE_CORE, GCS_SERVER, RAYLET, WORKER, Process
from enginehouse_engine.launcher.unit import Unit

MANAGER: Final = Process(role=ACTOR_MANAGER, rank=None, index=0, incarnation=1)
REACHABLE: Final = "serve"
"""The manager's stage once actors can be asked for."""


def ray_unit(member: int) -> Unit:
    """Of the leader (0), or of another member."""
    roles = (RAYLET,) if member else (GCS_SERVER, RAYLET)
    own = tuple(Process(role=role, rank=None, index=0, incarnation=1, member=member) for role in roles)
    return Unit(processes=own if member else (*own, MANAGER))


def adopted(ray: Unit) -> tuple[Process, ...]:
    """Those that ``ray start`` leaves behind."""
    return tuple(process for process in ray.processes if process.role != ACTOR_MANAGER)


def is_leader(ray: Unit | None) -> bool:
    """Knows where ranks are placed."""
    return ray is not None and MANAGER in ray.processes


def is_up(ray: Unit) -> bool:
    """Ranks may start."""
    last = ray.seen.get(ray.processes[-1])
    return last is not None and (last.stage == REACHABLE or not is_leader(ray))


def end(ray: Unit) -> list[Action]:
    """In order. A member's raylet takes its leave, so that the head places nothing there from now on; with the head all ends."""
    return [Kill(kill.process, farewell=not is_leader(ray)) for kill in ray.end() if isinstance(kill, Kill)]


def awaited(ray: Unit) -> str:
    """Who keeps ranks from starting."""
    if not ray.seen:
        return "Ray to start in this pod"
    manager = ray.seen.get(MANAGER)
    how_far = "not started" if manager is None else f"pid {manager.pid}, stage {manager.stage or 'not registered'}"
    return f"{MANAGER} to reach Ray ({how_far})"


def is_actor(process: Process, ray: Unit | None) -> bool:
    """Born by Ray, not by a launcher."""
    return ray is not None and process.role in (ENGINE_CORE, WORKER)
