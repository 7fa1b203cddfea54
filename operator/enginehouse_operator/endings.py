"""Why a replica cannot go on as it is: which member, or which rank, is over, and of what.

Invariant: the gravest reason is told, with the best record of it that there is; a cause that the kubelet or the launcher is about
to tell is waited for, the launcher's with a deadline. Does not decide what follows (``plan_replica.py``, ``plan_engine.py``).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from . import reasons
from .api import End, revision
from .failures import REMOVED, UNKNOWN, Failure
from .observe import Member, Replica
from .ranks import DEAD, FAILED, RankRow, Row, unanswered
from .steps import EndReplica

CAUSE_SECONDS: Final = 120.0
"""For the launcher to tell what a dead rank died of: it knows when the processes are reaped, and killed ones may take a minute."""

_SEVERITY = {reasons.MEMBER_FAILED: 0, reasons.MEMBER_LOST: 1, reasons.RANK_DEAD: 2, reasons.MEMBER_REMOVED: 3}


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


def is_over(replica: Replica, ending: Ending) -> bool:
    """Whether no rank is left, or somebody takes a member away. Else it serves on, smaller, until its successor may come."""
    is_leaving = any(member.deletion_deadline is not None for member in replica.members)
    return not replica.living_ranks or is_leaving or ending.reason == reasons.MEMBER_REMOVED


def ending_of(replica: Replica, *, now: datetime) -> Ending | None:
    """The gravest of a dead, removed or lost member and a dead rank; None while all goes well."""
    found = [_of_member(replica, member) for member in replica.members]
    found += [_of_lost(row) for row in replica.lost_rows]
    found += [_of_rank(replica, rank, now) for rank in replica.ranks if rank.state == DEAD]
    return min(filter(None, found), key=lambda ending: _SEVERITY[ending.reason], default=None)


def _of_member(replica: Replica, member: Member) -> Ending | None:
    row = replica.row_of(member)
    if member.has_ended or (row is not None and row.state == FAILED):
        cause = _best_record(member, row)
        # Unknown: the launcher itself died, or refused to start: its container ends, and the kubelet is about to say of what.
        if cause is not None and (member.has_ended or cause.class_ != UNKNOWN):
            return Ending(reason=reasons.MEMBER_FAILED, record=cause)
    if member.deletion_deadline is not None:
        record = Failure(member=member.name, class_=REMOVED, message="the pod was deleted by somebody", detected_by="Pod")
        return Ending(reason=reasons.MEMBER_REMOVED, record=record)
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
    return msgspec.structs.replace((same or vague or [words])[-1], member=member.name)


def _gravest(reported: tuple[Failure, ...]) -> Failure:
    """What trying again cannot help goes before what may have followed from it; else the newest."""
    return next((record for record in reported if record.is_permanent), reported[-1])


def _who(record: Failure) -> tuple[str, int | None, int | None, int | None]:
    return record.role, record.rank, record.incarnation, record.pid


def _of_lost(row: Row) -> Ending:
    """A row whose pod is gone, or was replaced by one of the same name."""
    if reported := unanswered(row):
        return Ending(reason=reasons.MEMBER_FAILED, record=msgspec.structs.replace(_gravest(reported), member=row.name))
    if row.state in ("Draining", "Ended"):
        record = Failure(member=row.name, class_=REMOVED, message="the pod was deleted by somebody", detected_by="Pod")
        return Ending(reason=reasons.MEMBER_REMOVED, record=record)
    words = "the pod vanished without a word: force-deleted, or its node is gone"
    return Ending(reason=reasons.MEMBER_LOST, record=Failure(member=row.name, class_="Lost", message=words, detected_by="Pod"))


def cause_due(replica: Replica) -> datetime | None:
    """Until when the cause of a dead rank is waited for, or was in vain; None = all are told."""
    silent = [rank for rank in replica.ranks if rank.state == DEAD and _told(replica, rank) is None]
    return min((_cause_due(replica, rank) for rank in silent), default=None)


def _of_rank(replica: Replica, rank: RankRow, now: datetime) -> Ending | None:
    """None while the rank's member is over: that is told first, by its launcher or by the kubelet."""
    if replica.copy is None or rank.rank in replica.ranks_of_ended_members:
        return None
    record = _told(replica, rank)
    if record is None:
        due = _cause_due(replica, rank)
        if now < due:
            return None
        words = f"it is Dead, and in {CAUSE_SECONDS:.0f} s nobody told of what: the log of its pod may say more"
        record = Failure(
            role="engine-core", rank=rank.rank, incarnation=rank.incarnation, message=words, detected_by="Row", detected_time=due
        )
    return Ending(reason=reasons.RANK_DEAD, record=record)


def _told(replica: Replica, rank: RankRow) -> Failure | None:
    """The death of this very incarnation: a rank is Dead before its processes are reaped."""
    record = record_of(replica, rank)
    return record if record is not None and record.incarnation == rank.incarnation else None


def _cause_due(replica: Replica, rank: RankRow) -> datetime:
    rows = [row for row in replica.rows if any(part.rank == rank.rank for part in row.ranks)]
    return max(row.written or replica.created for row in rows) + timedelta(seconds=CAUSE_SECONDS)


def record_of(replica: Replica, rank: RankRow) -> Failure | None:
    """What this incarnation of a rank, or the one before it, died of: the newest that is known."""
    found = [
        msgspec.structs.replace(record, member=row.name)
        for row in replica.rows
        for record in row.failures
        if record.rank == rank.rank
    ]
    if not found:
        return None
    newest = max(record.incarnation or 0 for record in found)
    return _gravest(tuple(record for record in found if (record.incarnation or 0) == newest))
