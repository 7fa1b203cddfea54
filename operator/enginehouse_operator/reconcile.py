"""One pass over one engine: look, observe, plan, act, status.

Invariant: level-triggered. A pass knows nothing of what woke it or of earlier passes; what it does follows from what it reads.
It may stop after any write, and the next one, of whatever process, goes on from there. What it sees is what ``cache.py`` holds, or
what it reads where that has doubts.
Does not read raw fields (``observe.py``), decide (``plan_*.py``) or render (``wanted/``).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from . import api, history, metrics, observe, reasons, spec_rules
from .act import Actor, engine_owner, replica_owner
from .cache import TRUSTED, Cache, World
from .conditions import cut
from .events import NORMAL, WARNING, Events
from .failures import seconds_between
from .kubernetes_client import CLAIMS, ENGINES, REPLICAS, Conflict, Kind, KubernetesClient, NotFound
from .plan_engine import EnginePlan, plan_engine
from .plan_objects import plan_objects
from .plan_replica import leave_service, plan_replica
from .pod_state import Problem, claim_not_found
from .queue import Again
from .read import read
from .seen import Engine, Replica
from .status import engine_status, replica_status
from .steps import AnyStep, CreateReplica, DeleteReplica, EndReplica
from .wanted.disruption import disruption_budget
from .wanted.pods import claims
from .wanted.rights import rights
from .wanted.services import endpoint, services

NEWS_SECONDS: Final = 1800.0
"""A death is no news after so long. An Event lives longer, an hour, and refuses its double until then."""
HELD_SECONDS: Final = 15.0
"""While the world lacks something that no watch tells of (a volume claim, a quota)."""


class Reconciler:
    """Everything that passes share. Safe to use for several engines at once."""

    def __init__(self, client: KubernetesClient, cache: Cache, actor: Actor, events: Events, clock: Callable[[], datetime]) -> None:
        self._client = client
        self._cache = cache
        self._actor = actor
        self._events = events
        self._clock = clock

    async def reconcile(self, namespace: str, name: str) -> Again:
        """One pass; when the next one is due. Raises ApiError when the API server cannot be read or written."""
        world = self._cache.world((namespace, name), now=self._clock()) or await self._read(namespace, name)
        if world is None:
            metrics.ENGINES.forget(namespace, name)
            return Again(after_seconds=None)
        engine, now = observe.engine(world.engine), self._clock()
        if engine.is_deleting:
            return Again(after_seconds=TRUSTED.total_seconds())  # to forget it, should no watch tell that it is gone
        replicas = observe.replicas(engine_uid=engine.uid, replica_objects=world.replicas, pods=world.pods)
        leaving = tuple(step for replica in replicas for step in leave_service(replica))
        outcome = await self._actor.act(leaving, engine=engine, world=world, replicas=replicas)
        spec, problems = _spec(world)
        plan, held = await self._plan(engine, spec, replicas, now)
        steps, taken = _all_steps(engine, spec, plan, replicas, world, now)
        outcome += await self._actor.act(steps, engine=engine, world=world, replicas=replicas)
        await self._tell_restarts(world, replicas, now)
        if held or taken:
            self._cache.doubt((namespace, name))
        if outcome.acted and not (outcome.problems or outcome.is_stale or engine.status.get("conditions")):
            return Again(after_seconds=0.0)  # of an engine that is being made only what has become of it is news
        found = [*problems, *held, *taken, *(problem for _, problem in outcome.problems)]
        deleted = {step.uid for step in steps if isinstance(step, DeleteReplica)}
        left = tuple(replica for replica in replicas if replica.uid not in deleted and not replica.is_deleting)
        is_stale = await self._write_replicas(world, left, outcome.problems, now)
        is_stale |= await self._write_engine(world, engine, spec, replicas, plan, found, now)
        refused = bool(outcome.problems) or outcome.is_stale or is_stale
        trusted = self._cache.trusted_seconds((namespace, name), now=now)
        return _again(plan, acted=outcome.acted, refused=refused, longest=HELD_SECONDS if held or taken else max(trusted, 1.0))

    async def _read(self, namespace: str, name: str) -> World | None:
        key = (namespace, name)
        is_new = not self._cache.knows(key)
        self._cache.begin_read(key)
        found = await read(self._client, namespace, name, is_new=is_new)
        return self._cache.hold(key, found, now=self._clock())

    async def _plan(
        self, engine: Engine, spec: api.EngineSpec | None, replicas: tuple[Replica, ...], now: datetime
    ) -> tuple[EnginePlan, list[Problem]]:
        """The plan, and what holds it up: before a replica is made or replaced the world is asked whether it can be."""
        if spec is None:
            return EnginePlan(), []
        plan = plan_engine(engine, spec, replicas, now=now)
        if not any(_makes_or_replaces(step) for step in plan.steps):
            return plan, []
        held = await self._preflight(engine, spec.copy())
        return (plan_engine(engine, spec, replicas, hold=True, now=now), held) if held else (plan, [])

    async def _preflight(self, engine: Engine, copy: api.EngineCopy) -> list[Problem]:
        refused = await self._actor.dry_run(engine, copy)
        if refused is not None:
            return [refused]
        for claim in claims(copy):
            if await self._client.get(CLAIMS, engine.namespace, claim) is None:
                return [claim_not_found(claim)]  # The first will do: a template may name ten thousand.
        return []

    async def _write_replicas(
        self, world: World, replicas: tuple[Replica, ...], problems: list[tuple[str, Problem]], now: datetime
    ) -> bool:
        raw, is_stale = {found["metadata"]["uid"]: found for found in world.replicas}, False
        for replica in replicas:
            own = [problem for name, problem in problems if name == replica.name]
            status = replica_status(replica, problems=own, now=now)
            seen = {"observedGeneration": replica.observed_generation, "conditions": list(replica.conditions)}
            if status != seen and not (replica.conditions == () and _only_starts(status)):
                is_stale |= await self._publish(world, REPLICAS, raw[replica.uid], status)
        return is_stale

    async def _write_engine(
        self,
        world: World,
        engine: Engine,
        spec: api.EngineSpec | None,
        replicas: tuple[Replica, ...],
        plan: EnginePlan,
        problems: list[Problem],
        now: datetime,
    ) -> bool:
        where = endpoint(engine_owner(engine), spec.service, scheme=spec.scheme) if spec is not None else ""
        status = engine_status(engine, spec, replicas, plan=plan, problems=problems, endpoint=where, now=now)
        if status != engine.status and await self._publish(world, ENGINES, world.engine, status):
            return True
        metrics.ENGINES.tell(engine.namespace, engine.name, status["conditions"])
        for failure in history.untold(engine.status, replicas):
            metrics.count_failure(failure, now=self._clock())
        for told in _news(engine.status, status):
            await self._events.say(world.engine, kind=told[0], reason=told[1], message=told[2])
        return False

    async def _tell_restarts(self, world: World, replicas: tuple[Replica, ...], now: datetime) -> None:
        """An Event for each death that its launcher answered itself; of the others tells the end that they caused."""
        for replica in replicas:
            for failure in replica.restarted_in_place:
                if failure.detected_time is not None and abs(seconds_between(failure.detected_time, now)) < NEWS_SECONDS:
                    reason = reasons.API_SERVER_RESTARTING if failure.rank is None else reasons.RANK_RESTARTING
                    words = f"replica {replica.name} goes on, and what died is started again in its pod: {failure}"
                    await self._events.say(world.engine, kind=WARNING, reason=reason, message=words, moment=failure.detected_time)

    async def _publish(self, world: World, kind: Kind, seen: dict[str, Any], status: dict[str, Any]) -> bool:
        """Write a status. True: the object is gone, or another one by now; the next pass sees which."""
        # Somebody may make an engine anew under its name, and what a status says of the past stays. Replicas only a pass makes.
        version = seen["metadata"]["resourceVersion"] if kind is ENGINES else None
        try:
            found = await self._client.apply_status(kind, seen, status, version=version)
        except (Conflict, NotFound):
            return True
        self._cache.wrote((found["metadata"]["namespace"], world.engine["metadata"]["name"]), found)
        return False


def _spec(world: World) -> tuple[api.EngineSpec | None, list[Problem]]:
    try:
        return spec_rules.parse_engine(world.engine["spec"]), []
    except api.InvalidSpec as error:
        return None, [Problem(reason=error.reason, message=cut(str(error)), wants_person=True)]


def _all_steps(
    engine: Engine, spec: api.EngineSpec | None, plan: EnginePlan, replicas: tuple[Replica, ...], world: World, now: datetime
) -> tuple[tuple[AnyStep, ...], list[Problem]]:
    """What is shared, and rights, before those who need them; the ends of replicas before what they lead to."""
    steps: list[AnyStep] = []
    problems: list[Problem] = []
    if spec is not None:
        owner = engine_owner(engine)
        wanted = [*services(owner, spec.service, scheme=spec.scheme), disruption_budget(owner, spec)]
        applied, problems_found = plan_objects(wanted, world.others, owner_uid=engine.uid)
        steps += applied
        problems += problems_found
    steps += plan.steps
    ending = {step.name for step in plan.steps if isinstance(step, EndReplica)}
    for replica in replicas:
        if replica.name in ending:
            continue
        applied, problems_found = plan_objects(rights(replica_owner(engine, replica)), world.others, owner_uid=replica.uid)
        # Rights of a deleted namesake are about to go, and a token that a pod gets by them would go with them.
        taken = plan_replica(replica, hold=bool(problems_found), now=now)
        if replica.is_live and not any(isinstance(step, EndReplica) for step in taken):
            steps += applied
            problems += problems_found
        steps += taken
    return tuple(steps), problems


def _only_starts(status: dict[str, Any]) -> bool:
    """What everybody expects of a new replica; who is waited for says its engine's status."""
    return {found["reason"] for found in status["conditions"]} <= {reasons.STARTING, reasons.LIVING}


def _makes_or_replaces(step: AnyStep) -> bool:
    if isinstance(step, EndReplica):
        return step.reason == reasons.ROLLOUT or step.end.failure is not None
    return isinstance(step, CreateReplica)


def _news(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Kind, reason and message of what is worth an Event when one status follows another."""
    was, now = ({found["type"]: found for found in status.get("conditions") or ()} for status in (before, after))
    told = []
    for kind, bad in (("Stalled", "True"), ("PlacementReady", "False")):
        known, found = was.get(kind, {}), now.get(kind, {})
        if found.get("reason") == reasons.PLACEMENT_PENDING:
            continue  # on the way
        if found.get("status") == bad and (found["reason"], found["message"]) != (known.get("reason"), known.get("message")):
            told.append((WARNING, found["reason"], found["message"]))
    waited, placed = was.get("PlacementReady", {}), now.get("PlacementReady", {})
    if (waited.get("status"), placed.get("status")) == ("False", "True"):
        told.append((NORMAL, placed["reason"], placed["message"]))
    return told


def _again(plan: EnginePlan, *, acted: int, refused: bool, longest: float) -> Again:
    if refused or acted:
        return Again(after_seconds=0.0, failed=refused)  # until a pass finds nothing to do, whatever the watches tell
    wait = plan.look_again_seconds
    return Again(after_seconds=min(max(wait, 0.0), longest) if wait is not None else longest)
