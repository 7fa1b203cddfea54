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

from . import history, names, reasons
from .api import EngineSpec, revision
from .conditions import Condition, conditions
from .placement import placement_condition
from .plan_engine import EnginePlan
from .pod_state import Problem
from .problems import engine_problems, replica_problems, what_leaves, what_starts
from .ranks import RESTARTING, RankRow
from .seen import Engine, Replica


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
    known = engine_problems(engine, live, plan, problems)
    all_ready = spec is not None and not plan.outdated and len(ready) == len(live) == spec.desired_replicas
    all_ready = all_ready and not _resizing(spec, live)
    previous = engine.status
    context = _context(previous, serving, all_ready=all_ready and bool(ready))
    wanted = _engine_conditions(spec, live, plan, known, all_ready=all_ready, context=context.get("maxContextLength"))
    status: dict[str, Any] = {
        "observedGeneration": engine.generation,
        "conditions": conditions(wanted, previous=previous.get("conditions") or (), generation=engine.generation, now=now),
        "replicas": len(live),
        "readyReplicas": len(ready),
        "updatedReplicas": len(live) - plan.outdated if spec is not None else previous.get("updatedReplicas", 0),
        "selector": f"{names.LABEL_ENGINE}={engine.name},{names.LABEL_ROLE}={names.LEADER}",
        "restarts": history.restarts(live),
        **context,
    }
    if spec is not None:
        status |= {"endpoint": endpoint, "currentRevision": revision(spec.copy())}
    else:
        status |= {key: previous[key] for key in ("endpoint", "currentRevision") if key in previous}
    failure = history.last_failure(previous, replicas)
    return status | ({"lastFailure": failure} if failure else {})


def replica_status(replica: Replica, *, problems: Iterable[Problem], now: datetime) -> dict[str, Any]:
    """The operator's part of ``EngineReplica.status``."""
    end = replica.spec.end
    known = replica_problems(replica, problems)
    if end is not None:
        words = f"asked to end: {end.failure or end.reason}"
        ready = Condition(type="Ready", is_true=False, reason=reasons.ENDING, message=words)
        ended = Condition(type="Ended", is_true=replica.is_gone, reason=end.reason, message=words)
    else:
        ended = Condition(type="Ended", is_true=False, reason=reasons.LIVING)
        why = next((problem for problem in known if problem.is_harmless or not replica.is_ready), None)
        if why is not None:
            ready = Condition(type="Ready", is_true=replica.is_ready, reason=why.reason, message=why.message)
        elif replica.is_ready:
            ready = Condition(type="Ready", is_true=True, reason=reasons.SERVING)
        else:
            ready = Condition(type="Ready", is_true=False, reason=reasons.STARTING, message=what_starts(replica))
    return {
        "observedGeneration": replica.generation,
        "conditions": conditions((ready, ended), previous=replica.conditions, generation=replica.generation, now=now),
    }


def _engine_conditions(
    spec: EngineSpec | None,
    live: list[Replica],
    plan: EnginePlan,
    known: list[Problem],
    *,
    all_ready: bool,
    context: int | None,
) -> list[Condition]:
    desired = spec.desired_replicas if spec is not None else None
    serving_count = sum(replica.is_serving for replica in live)
    count = f"{serving_count} of {desired} replicas serve" if desired is not None else f"{serving_count} replicas serve"
    worst = known[0] if known else None
    person = next((problem for problem in known if problem.wants_person), None)
    way = _on_the_way(spec, live, plan)
    if all_ready and (worst is None or worst.is_harmless or not desired):
        beside = worst if desired else None
        reason, words = (beside.reason, f"{count}: {beside.message}") if beside is not None else (_settled_reason(spec), count)
        serving = Condition(type="Ready", is_true=True, reason=reason, message=words)
        progressing = Condition(type="Progressing", is_true=False, reason=reasons.SETTLED)
        worst = person = None
    else:
        why = person or worst
        reason, words = (why.reason, f"{count}: {why.message}") if why is not None else (way, _with_what_starts(count, spec, live))
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
    fit = _context_fit(known, context if context is not None and context >= shortest else None)
    found = [serving, available, progressing, fit]
    if spec is not None and spec.is_elastic:
        found.append(placement_condition(live))
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
    if spec is not None and (len(live) != spec.desired_replicas or _resizing(spec, live)):
        return reasons.SCALING
    restarting = [unit for replica in live for unit in replica.units if unit.state == RESTARTING]
    if any(isinstance(unit, RankRow) for unit in restarting):
        return reasons.RANK_RESTARTING
    if restarting:
        return reasons.API_SERVER_RESTARTING
    grows = any(replica.is_serving for replica in live if replica.copy is not None and replica.copy.is_elastic)
    return reasons.SCALING if grows else reasons.STARTING


def _resizing(spec: EngineSpec | None, live: list[Replica]) -> bool:
    """Some replica has yet to be told of another number of ranks."""
    data = [replica.copy.parallelism.data for replica in live if replica.copy is not None and replica.copy.is_elastic]
    return spec is not None and any(number != spec.parallelism.data for number in data)


def _context_fit(known: list[Problem], context: int | None) -> Condition:
    for problem in known:
        if problem.reason == reasons.CONTEXT_TOO_SMALL:
            return Condition(type="ContextFit", is_true=False, reason=problem.reason, message=problem.message)
    if context is None:
        return Condition(type="ContextFit", is_true=None, reason=reasons.NOT_KNOWN)
    return Condition(type="ContextFit", is_true=True, reason=reasons.FITS, message=f"{context} tokens")


def _with_what_starts(count: str, spec: EngineSpec | None, live: list[Replica]) -> str:
    first = next((replica for replica in live if not replica.is_ready), None)
    if first is not None:
        return f"{count}: {first.name}: {what_starts(first)}"
    waits = next((replica for replica in live if _resizing(spec, [replica])), None)
    return count if waits is None or spec is None else f"{count}: {waits.name}: {what_leaves(waits, data=spec.parallelism.data)}"


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
