"""Carry out the steps of a plan, in order; each refusal becomes a problem that the status tells.

Invariant: what is born is born by POST under its deterministic name, so that a repeated step is refused and not doubled; what
exists is named by UID. A step that fails does not stop the steps of other replicas.
Does not decide, does not write statuses.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from typing import Any

import msgspec

from . import log_format, names, reasons
from .api import EngineCopy, InvalidSpec
from .cache import Cache, World
from .events import NORMAL, WARNING, Events
from .kubernetes_client import PODS, REPLICAS, ApiError, Conflict, Forbidden, Invalid, KubernetesClient, NotFound
from .pod_state import Problem
from .seen import Engine, Replica
from .steps import (
    AnyStep,
    ApplyObject,
    CreateMember,
    CreateReplica,
    DeleteMember,
    DeleteReplica,
    EndReplica,
    LeaveService,
    RemoveRow,
    ResizeReplica,
)
from .wanted.metadata import Owner
from .wanted.pods import PodSettings, pod
from .wanted.ray_token import TOKEN_BYTES, needs_token, token_secret
from .wanted.replicas import replica as replica_manifest

log = logging.getLogger("enginehouse.operator")

_TOLD = (CreateReplica, EndReplica, ResizeReplica)
"""Steps that are worth an Event: one for each end, one for each successor and change of ranks, however many members."""


class Outcome(msgspec.Struct, kw_only=True):
    """What came of the steps."""

    acted: int = 0
    is_stale: bool = False
    """Something was not as it had been read: it is there already, gone, or another one by now."""
    problems: list[tuple[str, Problem]] = []
    """With the name of the replica concerned, empty for the engine's own."""

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            acted=self.acted + other.acted,
            is_stale=self.is_stale or other.is_stale,
            problems=[*self.problems, *other.problems],
        )


class Actor:
    """Acts for one operator."""

    def __init__(self, client: KubernetesClient, cache: Cache, events: Events, pod_settings: PodSettings) -> None:
        self._client = client
        self._cache = cache
        self._events = events
        self._pod_settings = pod_settings

    async def act(self, steps: tuple[AnyStep, ...], *, engine: Engine, world: World, replicas: tuple[Replica, ...]) -> Outcome:
        """Raises Unavailable when the API server cannot be reached: the pass ends there and is tried again."""
        outcome, by_name = Outcome(problems=[]), {replica.name: replica for replica in replicas}
        for step in steps:
            about = log_format.about(engine.namespace, engine.name, object=step.name, reason=step.reason)
            try:
                await self._one(step, engine, by_name)
            except (Conflict, NotFound) as error:
                log.info("%s: %s", step.message, error, extra=about)
                outcome.is_stale = True
                continue
            except (Invalid, Forbidden) as error:
                log.warning("%s: %s", step.message, error, extra=about)
                concerned = step.replica if isinstance(step, CreateMember) else ""
                outcome.problems.append((concerned, refusal(error, is_pod=isinstance(step, CreateMember))))
                continue
            outcome.acted += not isinstance(step, ApplyObject)  # nothing follows from it; what it cannot change would spin
            log.info("%s (%s)", step.message, step.reason, extra=about)
            if isinstance(step, _TOLD):
                kind = WARNING if isinstance(step, EndReplica) and step.end.failure is not None else NORMAL
                await self._events.say(world.engine, kind=kind, reason=step.reason, message=step.message)
        return outcome

    async def _one(self, step: AnyStep, engine: Engine, replicas: dict[str, Replica]) -> None:
        key, found = (engine.namespace, engine.name), await self._asked(step, engine, replicas)
        if found is not None:
            self._cache.wrote(key, found)
        elif isinstance(step, DeleteReplica | DeleteMember):
            self._cache.removed(key, step.uid)

    async def _asked(self, step: AnyStep, engine: Engine, replicas: dict[str, Replica]) -> dict[str, Any] | None:
        """The object as it is then."""
        client, namespace = self._client, engine.namespace
        match step:
            case CreateReplica():
                return await client.create(replica_manifest(engine_owner(engine), step))
            case EndReplica():
                patch = {"spec": {"end": msgspec.to_builtins(step.end)}}
                return await client.merge(REPLICAS, namespace, step.name, uid=step.uid, patch=patch)
            case DeleteReplica():
                return await client.delete(REPLICAS, namespace, step.name, uid=step.uid)
            case ResizeReplica():
                patch = {"metadata": {"resourceVersion": step.version}, "spec": {"data": step.data}}
                return await client.merge(REPLICAS, namespace, step.name, uid=step.uid, patch=patch)
            case RemoveRow():
                known = {"name": step.member, "uid": step.member_uid}
                place = f"/status/members/{step.place}"
                return await client.remove_from_status(REPLICAS, namespace, step.name, uid=step.uid, path=place, known=known)
            case CreateMember():
                replica = replicas[step.replica]
                return await self._create_member(engine, replica, replica.copy, step) if replica.copy is not None else None
            case LeaveService():
                patch = {"metadata": {"labels": {names.LABEL_SERVING: None}}}
                return await client.merge(PODS, namespace, step.name, uid=step.uid, patch=patch)
            case DeleteMember():
                return await client.delete(PODS, namespace, step.name, uid=step.uid)
            case ApplyObject():
                return await client.apply(step.manifest)

    async def _create_member(self, engine: Engine, replica: Replica, copy: EngineCopy, step: CreateMember) -> dict[str, Any]:
        if needs_token(copy) and step.ordinal == 0:
            # Before the leader, which the other members cannot do without; never looked at afterwards.
            with contextlib.suppress(Conflict):  # made already, by a pass that came no further
                await self._client.create(token_secret(replica_owner(engine, replica), token=secrets.token_hex(TOKEN_BYTES)))
        try:
            manifest = pod(replica_owner(engine, replica), copy, name=step.name, ordinal=step.ordinal, settings=self._pod_settings)
        except InvalidSpec as error:
            raise Invalid(f"rendering pod {step.name}", status=422, reason=error.reason, message=str(error)) from error
        return await self._client.create(manifest)

    async def dry_run(self, engine: Engine, copy: EngineCopy) -> Problem | None:
        """Whether the API server would take the pods of this spec. Asked before anything that runs is replaced."""
        try:
            manifest = pod(engine_owner(engine), copy, name=f"{engine.name}-check", ordinal=0, settings=self._pod_settings)
        except InvalidSpec as error:
            return Problem(reason=error.reason, message=str(error), wants_person=True)
        manifest["spec"] |= {"serviceAccountName": "default"}  # the replica's does not exist yet
        try:
            await self._client.create(manifest, dry_run=True)
        except (Invalid, Forbidden) as error:
            found = refusal(error, is_pod=True)
            # Ending an old replica makes room in a quota, and the account of a new namespace comes by itself.
            passes = found.reason == reasons.QUOTA_EXCEEDED or "looking up service account" in error.message
            return None if passes else found
        except (Conflict, NotFound):
            return None
        return None


def refusal(error: ApiError, *, is_pod: bool) -> Problem:
    """What the API server's refusal means to people."""
    if isinstance(error, Invalid):
        if not is_pod:
            return Problem(reason=reasons.OBJECT_REJECTED, message=f"{error.what}: {error.message}", wants_person=True)
        reason = error.reason if error.reason in reasons.MEANINGS else reasons.POD_REJECTED
        hint = "check spec.template and spec.resources"
        return Problem(reason=reason, message=f"the API server refused it: {error.message}: {hint}", wants_person=True)
    if "exceeded quota" in error.message:
        hint = "raise the quota, or ask for less in spec.resources or spec.replicas"
        return Problem(reason=reasons.QUOTA_EXCEEDED, message=f"{error.message}: {hint}")
    return Problem(reason=reasons.FORBIDDEN, message=f"{error.what} was forbidden: {error.message}")


def engine_owner(engine: Engine) -> Owner:
    return Owner(kind=names.ENGINE_KIND, name=engine.name, uid=engine.uid, namespace=engine.namespace, engine=engine.name)


def replica_owner(engine: Engine, replica: Replica) -> Owner:
    return Owner(kind=names.REPLICA_KIND, name=replica.name, uid=replica.uid, namespace=engine.namespace, engine=engine.name)
