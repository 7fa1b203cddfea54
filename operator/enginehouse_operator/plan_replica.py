"""The replica planner: the members of one replica, made once and never again, and their way out.

Invariants: a missing member without a row is made, one with a row is lost; a replica that lost a member ends, and no member is
made for a replica that ends; every ending is written before anything is stopped. The plan of a settled replica is empty.
Does not decide whether the replica is wanted (``plan_engine.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from . import names, reasons
from .api import End, revision
from .failures import REMOVED, UNKNOWN, Failure
from .observe import Member, Replica, Row
from .steps import AnyStep, CreateMember, DeleteMember, EndReplica, LeaveService


def plan_replica(replica: Replica, *, hold: bool = False, now: datetime) -> tuple[AnyStep, ...]:
    """Decide. ``hold``: make no member at present."""
    if replica.is_deleting:
        return ()
    if replica.spec.end is not None:
        return tuple(_stop(replica))
    ending = _ending(replica, now)
    if ending is not None:
        return (ending,)
    if replica.copy is None or hold:
        return ()
    return tuple(_missing(replica, replica.copy.members))


def _missing(replica: Replica, wanted: int) -> Iterable[AnyStep]:
    present = {member.name for member in replica.members}
    for ordinal in range(wanted):
        name = names.member_name(replica.name, replica_uid=replica.uid, ordinal=ordinal)
        if name not in present:
            yield CreateMember(
                name=name,
                reason=reasons.MEMBER_CREATED,
                message=f"pod {name} is made for replica {replica.name}",
                replica=replica.name,
                ordinal=ordinal,
            )


def _ending(replica: Replica, now: datetime) -> EndReplica | None:
    """The end that the world has decided: a dead, removed or lost member. A failure goes before a removal."""
    found = [_end_by(replica, member) for member in replica.members]
    present = {member.name: member.uid for member in replica.members}
    found += [_lost(replica, row) for row in replica.rows if present.get(row.name) != row.uid]
    endings = [ending for ending in found if ending is not None]
    if not endings:
        return None
    reason, record, deadline = min(endings, key=lambda ending: _SEVERITY[ending[0]])
    detected = min(record.detected_time or now, now)  # another machine's clock may be ahead
    made_from = revision(replica.copy) if replica.copy is not None else ""
    record = msgspec.structs.replace(
        record, replica=replica.name, replica_uid=replica.uid, revision=made_from, detected_time=detected
    )
    return EndReplica(
        name=replica.name,
        uid=replica.uid,
        reason=reason,
        message=f"replica {replica.name} ends: {record}",
        end=End(reason=reason, deadline=max(deadline or now, now), failure=record),
    )


_SEVERITY = {reasons.MEMBER_FAILED: 0, reasons.MEMBER_LOST: 1, reasons.MEMBER_REMOVED: 2}

_Ending = tuple[str, Failure, datetime | None]


def _end_by(replica: Replica, member: Member) -> _Ending | None:
    row = replica.row_of(member)
    if member.has_ended or (row is not None and row.state == "Failed"):
        cause = _best_record(member, row)
        # Unknown: the launcher itself died, or refused to start: its container ends, and the kubelet is about to say of what.
        if cause is not None and (member.has_ended or cause.class_ != UNKNOWN):
            return reasons.MEMBER_FAILED, cause, None
    if member.deletion_deadline is not None:
        record = Failure(member=member.name, class_=REMOVED, message="the pod was deleted by somebody", detected_by="Pod")
        return reasons.MEMBER_REMOVED, record, member.deletion_deadline
    if member.has_ended:
        words = "the engine ended although nobody asked it to"
        record = Failure(
            member=member.name, role="launcher", class_="ExitCode", exit_code=0, message=words, detected_by="ContainerStatus"
        )
        return reasons.MEMBER_FAILED, record, None
    return None


def _best_record(member: Member, row: Row | None) -> Failure | None:
    """The launcher's last words, with the times of the monitor's record of the same death; else what the monitor knows."""
    reported = row.failures if row is not None else ()
    words = member.failure
    if words is None:
        return msgspec.structs.replace(_gravest(reported), member=member.name) if reported and not member.succeeded else None
    told = [record for record in reported if record.class_ != UNKNOWN]
    same = [record for record in told if _who(record) == _who(words)]
    vague = told[-1:] if words.class_ in (UNKNOWN, "ExitCode") else []
    return msgspec.structs.replace((same or vague or [words])[-1], member=member.name)


def _gravest(reported: tuple[Failure, ...]) -> Failure:
    """What trying again cannot help goes before what may have followed from it; else the newest."""
    return next((record for record in reported if record.is_permanent), reported[-1])


def _who(record: Failure) -> tuple[str, int | None, int | None, int | None]:
    return record.role, record.rank, record.incarnation, record.pid


def _lost(replica: Replica, row: Row) -> _Ending | None:
    """A row whose pod is gone, or was replaced by one of the same name."""
    if row.failures:
        return reasons.MEMBER_FAILED, msgspec.structs.replace(_gravest(row.failures), member=row.name), None
    if row.state in ("Draining", "Ended"):
        record = Failure(member=row.name, class_=REMOVED, message="the pod was deleted by somebody", detected_by="Pod")
        return reasons.MEMBER_REMOVED, record, None
    words = "the pod vanished without a word: force-deleted, or its node is gone"
    return reasons.MEMBER_LOST, Failure(member=row.name, class_="Lost", message=words, detected_by="Pod"), None


def _stop(replica: Replica) -> Iterable[AnyStep]:
    for member in replica.members:
        if member.is_in_service:
            words = f"pod {member.name} gets no new connections: replica {replica.name} ends"
            yield LeaveService(name=member.name, uid=member.uid, reason=reasons.LEFT_SERVICE, message=words)
        if member.deletion_deadline is None:
            words = f"pod {member.name} stops: replica {replica.name} ends"
            yield DeleteMember(name=member.name, uid=member.uid, reason=reasons.MEMBER_STOPPED, message=words)
