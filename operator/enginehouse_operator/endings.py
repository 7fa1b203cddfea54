"""Why a replica cannot go on as it is: which member, rank or API server is over, and of what.

Invariant: the gravest reason is told, with the best record of it that there is; a cause that the kubelet or the launcher is about
to tell is waited for, the launcher's with a deadline. Does not decide what follows (``plan_replica.py``, ``plan_engine.py``).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from . import reasons
from .api import End, revision
from .failures import LOST, NODE_LOST, REMOVED, UNKNOWN, Failure
from .ranks import DEAD, FAILED, RankRow, Row, Unit, unanswered
from .seen import Member, Replica
from .steps import EndReplica

CAUSE_SECONDS: Final = 120.0
"""For the launcher to tell what a unit died of: it knows when the processes are reaped, and killed ones may take a minute."""

_GRAVEST_FIRST = (
    reasons.MEMBER_FAILED, reasons.MEMBER_LOST, reasons.RANK_DEAD, reasons.API_SERVER_DEAD, reasons.MEMBER_REMOVED
)  # fmt: skip
_BY_CLASS = {REMOVED: reasons.MEMBER_REMOVED, NODE_LOST: reasons.MEMBER_LOST, LOST: reasons.MEMBER_LOST}
"""Reasons of members that no failure of the engine ended."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """A reason to end a replica."""

    reason: str
    record: Failure

    def step(self, replica: Replica, *, deadline: datetime, now: datetime) -> EndReplica:
        """The end, written with a record that needs nothing else to be read."""
        detected = min(self.record.detected_time or now, now)  # another machine's clock may be ahead
        made_from = revision(replica.copy) if replica.copy is not None else ""
        record = msgspec.structs.replace(
            self.record, replica=replica.name, replica_uid=replica.uid, revision=made_from, detected_time=detected
        )
        return EndReplica(
            name=replica.name,
            uid=replica.uid,
            reason=self.reason,
            message=f"replica {replica.name} ends: {record}",
            end=End(reason=self.reason, deadline=max(deadline, now), failure=record),
        )


def dated(replica: Replica, ending: Ending) -> Ending:
    """With a time that later passes find again: a delay from "now" on would never be over. Of what nobody saw happen (a pod that is
    gone without a word) it is the last that was heard of the replica."""
    heard = max((row.written for row in replica.rows if row.written is not None), default=replica.created)
    record = msgspec.structs.replace(ending.record, detected_time=ending.record.detected_time or heard)
    return msgspec.structs.replace(ending, record=record)


def is_over(replica: Replica, ending: Ending) -> bool:
    """Whether nothing of it answers any more, or a member goes away. Else it serves on, smaller, until its successor may come."""
    leaving = {member.name for member in replica.members if member.deletion_deadline is not None}
    is_leaving = bool(leaving - replica.idle_members)
    return replica.copy is None or replica.is_dead or is_leaving or ending.reason == reasons.MEMBER_REMOVED


def ending_of(replica: Replica, *, now: datetime) -> Ending | None:
    """The gravest of a dead, removed or lost member and a dead rank or API server; None while all goes well."""
    idle = replica.idle_members
    found = [_of_member(replica, member) for member in replica.members if member.name not in idle]
    found += [_of_lost(row) for row in replica.lost_rows if row.name not in idle]
    found += [_of_unit(replica, unit, now) for unit in replica.units if unit.state == DEAD]
    return min(filter(None, found), key=lambda ending: _GRAVEST_FIRST.index(ending.reason), default=None)


def _of_member(replica: Replica, member: Member) -> Ending | None:
    row = replica.row_of(member)
    if member.has_ended or (row is not None and row.state == FAILED):
        cause = _best_record(member, row)
        # Unknown: the launcher itself died, or refused to start: its container ends, and the kubelet is about to say of what.
        if cause is not None and (member.has_ended or cause.class_ != UNKNOWN):
            return Ending(reason=_BY_CLASS.get(cause.class_, reasons.MEMBER_FAILED), record=cause)
    if member.deletion_deadline is not None:
        return _of_gone(member.name, class_=NODE_LOST if member.node_is_lost else REMOVED)
    if member.has_ended:
        words = "the engine ended although nobody asked it to"
        record = Failure(
            member=member.name, role="launcher", class_="ExitCode", exit_code=0, message=words, detected_by="ContainerStatus"
        )
        return Ending(reason=reasons.MEMBER_FAILED, record=record)
    return None


def _best_record(member: Member, row: Row | None) -> Failure | None:
    """The launcher's last words, with the times of the monitor's record of the same death; else what the monitor knows."""
    reported = unanswered(row) if row is not None else ()
    words = member.failure
    if words is None:
        return msgspec.structs.replace(_gravest(reported), member=member.name) if reported and not member.succeeded else None
    known = [record for record in reported if record.class_ != UNKNOWN]
    same = [record for record in known if _who(record) == _who(words)]
    vague = known[-1:] if words.class_ in (UNKNOWN, "ExitCode") else []
    best = (same or vague or [words])[-1]
    evidence = best.evidence or (words.evidence if same else "")
    return msgspec.structs.replace(best, member=member.name, evidence=evidence)


def _gravest(reported: tuple[Failure, ...]) -> Failure:
    """What trying again cannot help goes before what may have followed from it; else the newest."""
    return next((record for record in reported if record.policy.is_final), reported[-1])


def _who(record: Failure) -> tuple[str, int | None, int | None, int | None]:
    return record.role, record.rank, record.incarnation, record.pid


def _of_lost(row: Row) -> Ending:
    """A row whose pod is gone, or was replaced by one of the same name."""
    if reported := unanswered(row):
        return Ending(reason=reasons.MEMBER_FAILED, record=msgspec.structs.replace(_gravest(reported), member=row.name))
    return _of_gone(row.name, class_=REMOVED if row.state in ("Draining", "Ended") else LOST)


def _of_gone(member: str, *, class_: str) -> Ending:
    """A pod that no failure of the engine took away."""
    words = {
        REMOVED: "the pod was deleted by somebody",
        NODE_LOST: "its node is gone, unreachable or not ready, and Kubernetes gave the pod up",
        LOST: "the pod vanished without a word: force-deleted, or its node is gone",
    }
    record = Failure(member=member, class_=class_, message=words[class_], detected_by="Pod")
    return Ending(reason=_BY_CLASS[class_], record=record)


def died_of(ended: Replica) -> Failure | None:
    """What an ended replica died of: as its end says, else, of a planned end, what its rows tell of the time since.

    Of what is Unknown there the kubelet may have been the cause: it kills what has not stopped by the end of the grace period."""
    end = ended.spec.end
    if end is None:
        raise ValueError(f"replica {ended.name} has not ended")
    if end.failure is not None and end.failure.class_ != REMOVED:
        return end.failure
    told = [
        msgspec.structs.replace(
            record,
            member=row.name,
            replica=ended.name,
            replica_uid=ended.uid,
            # Another machine's clock may be ahead; what is told later than that was not asked to wait for.
            detected_time=min(record.detected_time or end.deadline, end.deadline),
        )
        for row in ended.rows
        for record in unanswered(row)
        if record.class_ != UNKNOWN
    ]
    return min(told, key=lambda record: record.detected_time or end.deadline, default=end.failure)


def cause_due(replica: Replica) -> datetime | None:
    """Until when the cause of a dead rank or API server is waited for, or was in vain; None = all are told."""
    silent = [unit for unit in replica.units if unit.state == DEAD and _told(replica, unit) is None]
    return min((_cause_due(replica, unit) for unit in silent), default=None)


def _of_unit(replica: Replica, unit: Unit, now: datetime) -> Ending | None:
    """None while its member is over: that is told first, by its launcher or by the kubelet."""
    if replica.copy is None:
        return None
    over, every = replica.ranks_of_ended_members, set(range(replica.copy.parallelism.data))
    # API servers live in the leader, which takes all ranks with it.
    if unit.rank in over if isinstance(unit, RankRow) else over >= every:
        return None
    record = _told(replica, unit)
    if record is None:
        due = _cause_due(replica, unit)
        if now < due:
            return None
        words = f"it is Dead, and in {CAUSE_SECONDS:.0f} s nobody told of what: the log of its pod may say more"
        record = unit.death(message=words, detected_by="Row", detected_time=due)
    return Ending(reason=reasons.RANK_DEAD if isinstance(unit, RankRow) else reasons.API_SERVER_DEAD, record=record)


def _told(replica: Replica, unit: Unit) -> Failure | None:
    """The death of this very incarnation: a unit is Dead before its processes are reaped."""
    record = record_of(replica, unit)
    return record if record is not None and record.incarnation == unit.incarnation else None


def _cause_due(replica: Replica, unit: Unit) -> datetime:
    rows = [row for row in replica.rows if any(str(part) == str(unit) for part in row.units)]
    return max(row.written or replica.created for row in rows) + timedelta(seconds=CAUSE_SECONDS)


def record_of(replica: Replica, unit: Unit) -> Failure | None:
    """What this incarnation of a rank or API server, or the one before it, died of: the newest that is known."""
    found = [
        msgspec.structs.replace(record, member=row.name) for row in replica.rows for record in row.failures if unit.had(record)
    ]
    if not found:
        return None
    newest = max(record.incarnation or 0 for record in found)
    return _gravest(tuple(record for record in found if (record.incarnation or 0) == newest))
