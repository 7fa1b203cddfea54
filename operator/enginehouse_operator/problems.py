"""What keeps an engine or a replica from what was asked, in words for conditions, and what is waited for when nothing is wrong.

Invariant: pure; the same world gives the same words, in the same order: what wants a person or a decision before what passes.
Does not decide which condition says it (``status.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import names, reasons
from .api import EngineCopy
from .endings import record_of
from .placement import placement_problem
from .plan_engine import EnginePlan
from .pod_state import Problem
from .ranks import DEAD, RESTARTING, SERVING, RankRow, Unit
from .seen import Engine, Replica


def engine_problems(engine: Engine, live: list[Replica], plan: EnginePlan, found: Iterable[Problem]) -> list[Problem]:
    """``found``: what came of reading the spec and of acting. What is harmless comes last."""
    known = [*found, *_stalls(plan, engine), *_of_pods(live), *_of_units(live), *_of_placement(live), *_delays(plan)]
    return sorted(known, key=lambda problem: problem.is_harmless)


def replica_problems(replica: Replica, found: Iterable[Problem]) -> list[Problem]:
    """In the same order."""
    known = [*found, *_of_pods([replica]), *_of_units([replica]), *_of_placement([replica])]
    return sorted(known, key=lambda problem: problem.is_harmless)


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


def _of_pods(replicas: Iterable[Replica]) -> Iterable[Problem]:
    for replica in replicas:
        idle = replica.idle_members
        for member in replica.members:
            if replica.copy is not None and member.ordinal >= replica.copy.members:
                continue  # on its way out
            if member.problem is not None:
                yield member.problem
            elif member.has_ended and member.name in idle:
                words = f"pod {member.name} ended before a rank needed it, and is made again: {member.failure or 'without a word'}"
                yield Problem(reason=reasons.MEMBER_REPLACED, message=words)


def _of_placement(replicas: Iterable[Replica]) -> Iterable[Problem]:
    for replica in replicas:
        problem = placement_problem(replica)
        if problem is not None:
            yield problem


def _of_units(replicas: Iterable[Replica]) -> Iterable[Problem]:
    """Ranks and API servers that died while others of their replica go on."""
    for replica in replicas:
        for unit in () if replica.is_dead else replica.units:
            reason = _reason(unit)
            if reason is not None:
                cause = record_of(replica, unit) or "its cause is not known yet"
                yield Problem(reason=reason, message=f"{unit} of {replica.name} is {unit.state}: {cause}")


def _reason(unit: Unit) -> str | None:
    is_rank = isinstance(unit, RankRow)
    if unit.state == DEAD:
        return reasons.RANK_DEAD if is_rank else reasons.API_SERVER_DEAD
    if unit.state == RESTARTING:
        return reasons.RANK_RESTARTING if is_rank else reasons.API_SERVER_RESTARTING
    return None


def what_starts(replica: Replica) -> str:
    """What a replica that is not ready, and with which nothing is wrong, waits for."""
    if replica.leader is None:
        return "its pod is being made"
    if replica.copy is not None and len(replica.members) < replica.copy.members:
        return f"{len(replica.members)} of its {replica.copy.members} pods are there"
    silent = next((member.name for member in replica.members if replica.row_of(member) is None), None)
    if silent is not None:
        # The kubelet tells a missing secret of a volume in Events alone.
        needs = "".join(f", secret {secret!r} of {where} among them" for where, secret in _secrets(replica.copy))
        return f"pod {silent} waits for its volumes and containers{needs}: kubectl describe pod {silent} says for which"
    if replica.copy is not None and replica.ranks and len(replica.ranks) < replica.copy.parallelism.data:
        return f"{len(replica.ranks)} of its {replica.copy.parallelism.data} ranks are there"
    if any(rank.state != SERVING for rank in replica.ranks) or not replica.ranks:
        return ", ".join(f"{rank} {rank.state}" for rank in replica.ranks) or "its launcher starts"
    if waited_for := [f"{server} {server.state}" for server in replica.api_servers if server.state != SERVING]:
        return ", ".join(waited_for)
    return f"pod {replica.leader.name} does not answer its readiness probe yet, or its node is gone"


def _secrets(copy: EngineCopy | None) -> Iterator[tuple[str, str]]:
    """Those that the leader mounts: the field that names each, and its name."""
    if copy is not None and copy.auth is not None:
        yield "spec.auth", copy.auth.api_key_secret_ref.name
    if copy is not None and copy.tls is not None:
        yield "spec.tls", copy.tls.secret_name


def what_leaves(replica: Replica, *, data: int) -> str:
    """Why a replica is not told yet that it shall have so many ranks."""
    beyond = 0 if replica.copy is None else replica.copy.members
    left = [member.name for member in replica.members if member.ordinal >= beyond]
    words = f"pod {left[0]} of a rank that left is still there" if left else "its leader has yet to show the ranks it was told last"
    return f"it gets {data} ranks later: {words}"
