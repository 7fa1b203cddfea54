"""Why an engine is not Ready: a chain of findings, each with its reason, what is said of it and the next step.

Invariants: pure, from objects alone; what operator, replicas, pods and their last deaths tell is told once, what decides first.
The operator's word goes before what pods say, which stands in for it when it is down. An engine that is Ready has no findings.
Does not draw (``why_text.py``); the next steps are ``next_steps.py``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from enginehouse_operator import observe, reasons
from enginehouse_operator.endings import record_of
from enginehouse_operator.failures import POLICIES, Failure
from enginehouse_operator.problems import what_starts
from enginehouse_operator.ranks import DEAD, RESTARTING
from enginehouse_operator.seen import Member, Replica

from .next_steps import DELETING, NOT_OBSERVED, POD_EVENT, NextStep, next_step

Raw = Mapping[str, Any]


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One link of the chain."""

    reason: str
    about: str
    """The object, as kubectl names it: KIND/NAME."""
    message: str
    next_step: NextStep
    evidence: str = ""
    """Of a death: the last lines, and the stacks of those who outlived it."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Whether the engine is Ready, and what it is if not."""

    engine: str
    namespace: str
    ready: bool
    stalled: bool
    """It will not go on by itself."""
    reason: str
    message: str
    findings: tuple[Finding, ...]


def why(
    engine: Raw, *, replicas: Iterable[Raw], pods: Iterable[Raw], events: Iterable[Raw], cluster_options: Sequence[str] = ()
) -> Answer:
    """``events``: the Warnings of its namespace; only those about its pods count."""
    metadata = engine["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    pods = list(pods)
    seen = observe.replicas(engine_uid=metadata["uid"], replica_objects=replicas, pods=pods)
    conditions = _conditions(engine)
    ready = conditions.get("Ready") or {}
    wanting = [replica for replica in seen if replica.is_live and not replica.is_ready]
    findings = list(_of_engine(engine, conditions, wanting))
    if findings:
        findings += [*_of_deaths(engine, seen), *_of_replicas(wanting), *_of_pods(wanting, events)]
    told = _once(findings)
    steps = [finding.next_step.of(name, namespace=namespace, cluster_options=cluster_options) for finding in told]
    named = [msgspec.structs.replace(finding, next_step=step) for finding, step in zip(told, steps, strict=True)]
    return Answer(
        engine=name,
        namespace=namespace,
        ready=not findings,
        stalled=(conditions.get("Stalled") or {}).get("status") == "True",
        reason=named[0].reason if named else ready["reason"],
        message=ready.get("message", ""),
        findings=tuple(named),
    )


def _conditions(raw: Raw) -> dict[str, Raw]:
    return {condition["type"]: condition for condition in (raw.get("status") or {}).get("conditions") or ()}


def _finding(reason: str, about: str, message: str, evidence: str = "") -> Finding:
    return Finding(reason=reason, about=about, message=message, next_step=next_step(reason), evidence=evidence)


def _of_engine(engine: Raw, conditions: Mapping[str, Raw], wanting: list[Replica]) -> Iterable[Finding]:
    """What the operator says of it, and whether that is still so."""
    metadata, about = engine["metadata"], f"inferenceengine/{engine['metadata']['name']}"
    if "deletionTimestamp" in metadata:
        yield _finding(DELETING, about, f"it is being deleted since {metadata['deletionTimestamp']}")
    seen, wanted = (engine.get("status") or {}).get("observedGeneration", 0), metadata.get("generation", 0)
    ready = conditions.get("Ready")
    if ready is None:
        yield _finding(NOT_OBSERVED, about, "no operator has looked at it yet")
        return
    if seen < wanted:
        words = f"no operator has looked at its present spec yet: that is generation {wanted}, the conditions are about {seen}"
        yield _finding(NOT_OBSERVED, about, words)
    if ready["status"] != "True":
        told = [ready, *(conditions.get(kind) or {} for kind in ("ContextFit", "PlacementReady"))]
        yield from (_finding(said["reason"], about, said.get("message", "")) for said in told if said.get("status") == "False")
    elif wanting:
        words = f"the operator's last word is Ready, but by its pods and rows {wanting[0].name} is not"
        yield _finding(NOT_OBSERVED, about, words)


def _of_deaths(engine: Raw, replicas: Iterable[Replica]) -> Iterable[Finding]:
    """What the replicas that are missing died of, and their ranks and API servers."""
    by_index: dict[int, list[Replica]] = {}
    for replica in replicas:
        by_index.setdefault(replica.spec.index, []).append(replica)
    for holders in by_index.values():
        if holders[-1].is_ready:
            continue
        for record in _records(holders):
            where = f"pod/{record.member}" if record.member else f"enginereplica/{record.replica}"
            evidence = record.evidence or _evidence(engine, record)
            yield _finding(record.class_, where, str(record), evidence)


def _records(holders: list[Replica]) -> list[Failure]:
    """Of the present holder of an index; else what the last one died of."""
    last = holders[-1]
    found = [record_of(last, unit) for unit in last.units if unit.state in (DEAD, RESTARTING)]
    found += [member.failure for member in last.members]
    known = [record for record in found if record is not None]
    ends = [replica.spec.end.failure for replica in reversed(holders) if replica.spec.end is not None]
    ended = [record for record in ends if record is not None] or list(last.spec.failures[-1:])
    return ended[:1] if last.spec.end is not None or not known else known


def _evidence(engine: Raw, record: Failure) -> str:
    """As ``status.lastFailure`` has it, if that is the same death: it keeps the fullest record."""
    last = (engine.get("status") or {}).get("lastFailure") or {}
    same = (last.get("member"), last.get("rank"), last.get("incarnation")) == (record.member, record.rank, record.incarnation)
    return str(last.get("evidence", "")) if same else ""


def _of_replicas(wanting: Iterable[Replica]) -> Iterable[Finding]:
    for replica in wanting:
        if not replica.conditions:
            yield _finding(reasons.STARTING, f"enginereplica/{replica.name}", what_starts(replica))
        for condition in replica.conditions:
            if condition["type"] == "Ready" and condition["status"] == "False":
                yield _finding(condition["reason"], f"enginereplica/{replica.name}", condition.get("message", ""))


def _of_pods(wanting: Iterable[Replica], events: Iterable[Raw]) -> Iterable[Finding]:
    """What pods say themselves; of one that has yet to start and says nothing, the newest Event."""
    newest: dict[str, Raw] = {}
    for event in sorted(events, key=_moment):
        newest[(event.get("involvedObject") or {}).get("uid", "")] = event
    for replica in wanting:
        for member in replica.members:
            if member.problem is not None and not member.problem.is_harmless:
                yield _finding(member.problem.reason, f"pod/{member.name}", member.problem.message)
            elif _waits(replica, member) and member.uid in newest:
                event = newest[member.uid]
                message = f"pod {member.name}: {event.get('message', '')}"
                yield Finding(reason=event["reason"], about=f"pod/{member.name}", message=message, next_step=POD_EVENT)


def _waits(replica: Replica, member: Member) -> bool:
    """For its containers: its monitor, the first to run, has not written its row."""
    return not member.has_ended and replica.row_of(member) is None


def _moment(event: Raw) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")


def _once(findings: Iterable[Finding]) -> list[Finding]:
    """Without what an earlier finding says already. A death whose cause a condition tells keeps its next step: it is the cause."""
    kept: list[Finding] = []
    for finding in findings:
        holder = next((number for number, other in enumerate(kept) if _covers(other, finding)), None)
        if holder is not None:
            evidence = kept[holder].evidence or finding.evidence
            kept[holder] = msgspec.structs.replace(kept[holder], evidence=evidence)
        elif finding.reason in POLICIES and any(finding.message in other.message for other in kept):
            meaning = POLICIES[finding.reason].meaning.replace("`", "")
            kept.append(msgspec.structs.replace(finding, message=meaning))
        else:
            kept.append(finding)
    return kept


def _covers(other: Finding, finding: Finding) -> bool:
    """A condition carries the message of a death that trying again cannot help as its own."""
    is_final = finding.reason in POLICIES and POLICIES[finding.reason].is_final
    return other.reason == finding.reason and (is_final or finding.message in other.message)
