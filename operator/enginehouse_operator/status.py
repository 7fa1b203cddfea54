"""What the operator publishes: the statuses of an engine and of its replicas.

Invariants: pure; the same world gives the same status, so that a settled world causes no write; nothing in it moves on its own.
``maxContextLength`` is the minimum over the replicas while all are ready, and otherwise only falls: what is published is what
every replica accepts. Does not write (``reconcile.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from . import names, reasons
from .api import EngineSpec, revision
from .conditions import Condition, conditions
from .endings import record_of
from .failures import REMOVED, UNKNOWN, Failure
from .observe import Engine, Replica
from .plan_engine import EnginePlan
from .pod_state import Problem
from .ranks import DEAD, RESTARTING, restarted_in_place


def engine_status(
    engine: Engine,
    spec: EngineSpec | None,
    replicas: tuple[Replica, ...],
    *,
    plan: EnginePlan,
    problems: Iterable[Problem],
    endpoint: str,
    now: datetime,
) -> dict[str, Any]:
    """``InferenceEngine.status``. ``spec`` None: it cannot be read, the first problem says why; what is known of replicas stays."""
    live = [replica for replica in replicas if replica.is_live]
    serving = [replica for replica in live if replica.is_serving]
    ready = [replica for replica in live if replica.is_ready]
    found = [*problems, *_stalls(plan, engine), *_pod_problems(live), *_rank_problems(live), *_delays(plan)]
    all_ready = spec is not None and not plan.outdated and len(ready) == len(live) == spec.desired_replicas
    previous = engine.status
    context = _context(previous, serving, all_ready=all_ready and bool(ready))
    wanted = _engine_conditions(spec, live, plan, found, all_ready=all_ready, context=context.get("maxContextLength"))
    status: dict[str, Any] = {
        "observedGeneration": engine.generation,
        "conditions": conditions(wanted, previous=previous.get("conditions") or (), generation=engine.generation, now=now),
        "replicas": len(live),
        "readyReplicas": len(ready),
        "updatedReplicas": len(live) - plan.outdated if spec is not None else previous.get("updatedReplicas", 0),
        "selector": f"{names.LABEL_ENGINE}={engine.name},{names.LABEL_ROLE}={names.LEADER}",
        "restarts": sum(_restarts(replica) for replica in live),
        **context,
    }
    if spec is not None:
        status |= {"endpoint": endpoint, "currentRevision": revision(spec.copy())}
    else:
        status |= {key: previous[key] for key in ("endpoint", "currentRevision") if key in previous}
    failure = _last_failure(previous, replicas)
    return status | ({"lastFailure": failure} if failure else {})


def replica_status(replica: Replica, *, problems: Iterable[Problem], now: datetime) -> dict[str, Any]:
    """The operator's part of ``EngineReplica.status``."""
    end = replica.spec.end
    found = [*problems, *_pod_problems([replica]), *_rank_problems([replica])]
    if end is not None:
        words = f"asked to end: {end.failure or end.reason}"
        ready = Condition(type="Ready", is_true=False, reason=reasons.ENDING, message=words)
        ended = Condition(type="Ended", is_true=replica.is_gone, reason=end.reason, message=words)
    else:
        ended = Condition(type="Ended", is_true=False, reason=reasons.LIVING)
        if replica.is_ready:
            ready = Condition(type="Ready", is_true=True, reason=reasons.SERVING)
        elif found:
            ready = Condition(type="Ready", is_true=False, reason=found[0].reason, message=found[0].message)
        else:
            ready = Condition(type="Ready", is_true=False, reason=reasons.STARTING, message=_what_starts(replica))
    return {
        "observedGeneration": replica.generation,
        "conditions": conditions((ready, ended), previous=replica.conditions, generation=replica.generation, now=now),
    }


def _engine_conditions(
    spec: EngineSpec | None,
    live: list[Replica],
    plan: EnginePlan,
    problems: list[Problem],
    *,
    all_ready: bool,
    context: int | None,
) -> list[Condition]:
    desired = spec.desired_replicas if spec is not None else None
    serving_count = sum(replica.is_serving for replica in live)
    count = f"{serving_count} of {desired} replicas serve" if desired is not None else f"{serving_count} replicas serve"
    worst = problems[0] if problems else None
    person = next((problem for problem in problems if problem.wants_person), None)
    way = _on_the_way(spec, live, plan)
    if all_ready and (worst is None or not desired):
        serving = Condition(type="Ready", is_true=True, reason=_settled_reason(spec), message=count)
        progressing = Condition(type="Progressing", is_true=False, reason=reasons.SETTLED)
        worst = person = None
    else:
        why = person or worst
        reason, words = (why.reason, f"{count}: {why.message}") if why is not None else (way, _with_what_starts(count, live))
        serving = Condition(type="Ready", is_true=False, reason=reason, message=words)
        moves = person is None
        progressing = Condition(type="Progressing", is_true=moves, reason=way if moves else reason, message=words)
    available = Condition(
        type="Available",
        is_true=serving_count > 0,
        reason=reasons.SOME_REPLICAS_SERVE if serving_count else reasons.NO_REPLICA_SERVES,
        message=count,
    )
    shortest = spec.context.min_length if spec is not None else 1
    fit = _context_fit(problems, context if context is not None and context >= shortest else None)
    found = [serving, available, progressing, fit]
    if progressing.is_true:
        found.append(msgspec.structs.replace(progressing, type="Reconciling"))
    if person is not None:
        found.append(Condition(type="Stalled", is_true=True, reason=person.reason, message=person.message))
    return found


def _settled_reason(spec: EngineSpec | None) -> str:
    if spec is not None and spec.suspend:
        return reasons.SUSPENDED
    return reasons.ALL_REPLICAS_SERVE if spec is not None and spec.replicas else reasons.ZERO_REPLICAS


def _on_the_way(spec: EngineSpec | None, live: list[Replica], plan: EnginePlan) -> str:
    if plan.outdated:
        return reasons.ROLLING_OUT
    if plan.waiting:
        return reasons.RESTART_DELAYED
    if spec is not None and len(live) != spec.desired_replicas:
        return reasons.SCALING
    is_restarting = any(rank.state == RESTARTING for replica in live for rank in replica.ranks)
    return reasons.RANK_RESTARTING if is_restarting else reasons.STARTING


def _context_fit(problems: list[Problem], context: int | None) -> Condition:
    for problem in problems:
        if problem.reason == reasons.CONTEXT_TOO_SMALL:
            return Condition(type="ContextFit", is_true=False, reason=problem.reason, message=problem.message)
    if context is None:
        return Condition(type="ContextFit", is_true=None, reason=reasons.NOT_KNOWN)
    return Condition(type="ContextFit", is_true=True, reason=reasons.FITS, message=f"{context} tokens")


def _stalls(plan: EnginePlan, engine: Engine) -> Iterable[Problem]:
    ignored = f" (the annotation {names.ANNOTATION_RESUME_AFTER} is no RFC 3339 time with a zone and is ignored)"
    for verdict in plan.waiting:
        if verdict.not_before is None:
            words = verdict.message + (ignored if engine.resume_after_is_bad else "")
            yield Problem(reason=verdict.reason, message=words, wants_person=True)


def _delays(plan: EnginePlan) -> Iterable[Problem]:
    for verdict in plan.waiting:
        if verdict.not_before is not None:
            yield Problem(reason=verdict.reason, message=verdict.message)


def _pod_problems(replicas: Iterable[Replica]) -> Iterable[Problem]:
    for replica in replicas:
        for member in replica.members:
            if member.problem is not None:
                yield member.problem


def _rank_problems(replicas: Iterable[Replica]) -> Iterable[Problem]:
    """Ranks that died while others of their replica go on."""
    for replica in replicas:
        if not replica.living_ranks:
            continue
        for rank in replica.ranks:
            if rank.state in (DEAD, RESTARTING):
                reason = reasons.RANK_DEAD if rank.state == DEAD else reasons.RANK_RESTARTING
                cause = record_of(replica, rank) or "its cause is not known yet"
                words = f"rank {rank.rank} of {replica.name} is {rank.state}: {cause}"
                yield Problem(reason=reason, message=words)


def _restarts(replica: Replica) -> int:
    carried = sum(failure.costs_budget for failure in replica.spec.failures)
    return carried + len({failure.identity for row in replica.rows for failure in restarted_in_place(row)})


def _with_what_starts(count: str, live: list[Replica]) -> str:
    first = next((replica for replica in live if not replica.is_ready), None)
    return count if first is None else f"{count}: {first.name}: {_what_starts(first)}"


def _what_starts(replica: Replica) -> str:
    if replica.leader is None:
        return "its pod is being made"
    if replica.copy is not None and len(replica.members) < replica.copy.members:
        return f"{len(replica.members)} of its {replica.copy.members} pods are there"
    silent = next((member.name for member in replica.members if replica.row_of(member) is None), None)
    if silent is not None:
        # The kubelet tells a missing secret of a volume in Events alone.
        auth = replica.copy.auth if replica.copy is not None else None
        needs = f", secret {auth.api_key_secret_ref.name!r} of spec.auth among them" if auth is not None else ""
        return f"pod {silent} waits for its volumes and containers{needs}: kubectl describe pod {silent} says for which"
    if any(rank.state != "Serving" for rank in replica.ranks) or not replica.ranks:
        return ", ".join(f"rank {rank.rank} {rank.state}" for rank in replica.ranks) or "its launcher starts"
    return f"pod {replica.leader.name} does not answer its readiness probe yet, or its node is gone"


def _context(previous: dict[str, Any], serving: list[Replica], *, all_ready: bool) -> dict[str, Any]:
    """``maxContextLength`` and who limits it, or nothing while nothing is known."""
    lengths = [
        (rank.max_context_length, replica.spec.index, replica.name, rank.rank)
        for replica in serving
        for rank in replica.ranks
        if rank.max_context_length is not None
    ]
    before: dict[str, Any] = {key: value for key, value in previous.items() if key in ("maxContextLength", "contextLimitedBy")}
    if not lengths:
        return before
    shortest = min(lengths)
    published = before.get("maxContextLength")
    if published is not None and published <= shortest[0] and not all_ready:
        return before
    return {"maxContextLength": shortest[0], "contextLimitedBy": {"replica": shortest[2], "rank": shortest[3]}}


def _last_failure(previous: dict[str, Any], replicas: tuple[Replica, ...]) -> dict[str, Any] | None:
    """The newest known failure. What was published before stays when the objects that carried it are gone."""
    found: list[Failure] = []
    for replica in replicas:
        end = replica.spec.end
        found += replica.spec.failures
        found += [end.failure] if end is not None and end.failure is not None else []
        found += _reported(replica) if end is None else []
    known = [failure for failure in found if failure.class_ != REMOVED and failure.detected_time is not None]
    before: dict[str, Any] | None = previous.get("lastFailure")
    if not known:
        return before
    newest = max(known, key=lambda failure: (failure.detected_time, failure.replica))
    as_published: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(newest, replica_uid="", revision=""))
    as_published["class"] = newest.class_
    if before and _moment(before) >= _moment(as_published):  # the same one may be left in short (budget.py)
        return before
    return as_published


def _reported(replica: Replica) -> list[Failure]:
    """Failures that did not end their replica, as its rows have them. Of what is Unknown the kubelet is about to tell more."""
    return [
        msgspec.structs.replace(failure, replica=replica.name, member=row.name)
        for row in replica.rows
        for failure in row.failures
        if replica.living_ranks and failure.class_ != UNKNOWN
    ]


def _moment(published: dict[str, Any]) -> datetime:
    return msgspec.convert(published["detectedTime"], datetime)
