"""What is told of past failures: the newest one, and how many were answered by a restart.

Invariant: what was published stays when the objects that carried it are gone; of one failure the fullest record is kept.
Does not count against the budget (``budget.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from .failures import REMOVED, UNKNOWN, Failure
from .seen import Replica


def restarts(live: Iterable[Replica]) -> int:
    """Failures of the present replicas and their predecessors that were answered."""
    return sum(
        sum(failure.policy.counts for failure in replica.spec.failures) + len(replica.restarted_in_place) for replica in live
    )


def last_failure(previous: dict[str, Any], replicas: tuple[Replica, ...]) -> dict[str, Any] | None:
    """The newest known one, as published in ``status.lastFailure``."""
    known = _known(replicas)
    before: dict[str, Any] | None = previous.get("lastFailure")
    if not known:
        return before
    newest = max(known, key=lambda failure: (failure.detected_time, failure.replica, len(failure.evidence)))
    if not newest.evidence:
        newest = msgspec.structs.replace(newest, evidence=_evidence(newest, replicas))
    as_published: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(newest, replica_uid="", revision=""))
    as_published["class"] = newest.class_
    if before and _moment(before) >= _moment(as_published):  # the same one may be left in short (budget.py)
        is_fuller = _moment(before) == _moment(as_published) and "evidence" in as_published and "evidence" not in before
        return before | {"evidence": as_published["evidence"]} if is_fuller else before
    return as_published


def untold(previous: dict[str, Any], replicas: Iterable[Replica]) -> tuple[Failure, ...]:
    """Failures that came after the published one, each once: the next status tells the newest of them for the first time."""
    before: dict[str, Any] | None = previous.get("lastFailure")
    found: dict[tuple[object, ...], Failure] = {}
    for failure in sorted(_known(replicas), key=lambda failure: (failure.detected_time, failure.reported_time is None)):
        found.setdefault(_who(failure), failure)
    if before is None:
        return tuple(found.values())
    number = before.get("rank")
    told = (before.get("replica", ""), number, before.get("incarnation"), before.get("pid") if number is None else None)
    until = _moment(before)
    return tuple(  # the published one may come again, with the time of whoever saw it later: the kubelet
        failure
        for who, failure in found.items()
        if who != told and failure.detected_time is not None and failure.detected_time > until
    )


def _known(replicas: Iterable[Replica]) -> list[Failure]:
    """Also the same one several times, as those who saw it tell it."""
    found: list[Failure] = []
    for replica in replicas:
        end = replica.spec.end
        found += replica.spec.failures
        found += [end.failure] if end is not None and end.failure is not None else []
        found += _reported(replica)
    return [failure for failure in found if failure.class_ != REMOVED and failure.detected_time is not None]


def _who(failure: Failure) -> tuple[object, ...]:
    """As its identity, by the replica's name: what is published leaves out the UID, and rows do."""
    return (failure.replica, *failure.identity[1:])


def _reported(replica: Replica) -> list[Failure]:
    """Failures that did not end their replica, as its rows have them. Of what is Unknown the kubelet is about to tell more."""
    end = replica.spec.end
    ended_by_plan = end is not None and (end.failure is None or end.failure.class_ == REMOVED)
    return [
        msgspec.structs.replace(failure, replica=replica.name, member=row.name)
        for row in replica.rows
        for failure in row.failures
        if (ended_by_plan or not replica.is_dead) and failure.class_ != UNKNOWN
    ]


def _evidence(failure: Failure, replicas: Iterable[Replica]) -> str:
    """As the row of the same replica has it: of one death the end may know less than the monitor."""
    told = (
        record.evidence
        for replica in replicas
        if replica.name == failure.replica
        for row in replica.rows
        for record in row.failures
        if record.identity[1:] == failure.identity[1:]
    )
    return max(told, key=len, default="")


def _moment(published: dict[str, Any]) -> datetime:
    return msgspec.convert(published["detectedTime"], datetime)
