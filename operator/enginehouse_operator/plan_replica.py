"""The replica planner: the members of one replica, made once and never again, and their way out.

Invariants: a missing member without a row is made, one with a row is lost (where ranks come and go ``plan_elastic.py`` knows
exceptions); a replica of which nothing lives leaves service at once, before its cause is known, and ends when it is; no member is
made for a replica that ends; every ending is written before anything is stopped. The plan of a settled replica is empty.
Does not decide whether the replica is wanted, nor when one that lost only some ranks ends (``plan_engine.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from . import names, reasons
from .endings import ending_of, is_over
from .plan_elastic import tidy_members
from .seen import Replica
from .steps import AnyStep, CreateMember, DeleteMember, EndReplica, LeaveService


def leave_service(replica: Replica) -> tuple[LeaveService, ...]:
    """The label of the service comes off for good: of a leader that ends, and of one behind which nothing lives. Nothing is waited
    for: whoever acts does this first."""
    if replica.is_deleting or (replica.spec.end is None and not replica.is_dead):
        return ()
    why = "ends" if replica.spec.end is not None else "is dead"
    return tuple(
        LeaveService(
            name=member.name,
            uid=member.uid,
            reason=reasons.LEFT_SERVICE,
            message=f"pod {member.name} gets no new connections: replica {replica.name} {why}",
        )
        for member in replica.members
        if member.is_in_service
    )


def plan_replica(replica: Replica, *, hold: bool = False, now: datetime) -> tuple[AnyStep, ...]:
    """Decide, once :func:`leave_service` is done. ``hold``: make no member at present."""
    if replica.is_deleting:
        return ()
    if replica.spec.end is not None:
        return tuple(_stop(replica))
    ending = _ending(replica, now)
    if ending is not None:
        return (ending,)
    if replica.copy is None or hold:
        return ()
    return (*tidy_members(replica, now=now), *_missing(replica, replica.copy.members))


def _missing(replica: Replica, wanted: int) -> Iterable[AnyStep]:
    known = {member.name for member in replica.members} | {row.name for row in replica.rows}
    for ordinal in range(wanted):
        name = names.member_name(replica.name, replica_uid=replica.uid, ordinal=ordinal)
        if name not in known:
            yield CreateMember(
                name=name,
                reason=reasons.MEMBER_CREATED,
                message=f"pod {name} is made for replica {replica.name}",
                replica=replica.name,
                ordinal=ordinal,
            )


def _ending(replica: Replica, now: datetime) -> EndReplica | None:
    """The end that the world has decided already. A failure goes before a removal."""
    ending = ending_of(replica, now=now)
    if ending is None or not is_over(replica, ending):
        return None
    idle = replica.idle_members
    needed = [member for member in replica.members if member.name not in idle]
    leaving = [member.deletion_deadline for member in needed if member.deletion_deadline is not None]
    lets_drain = ending.reason == reasons.MEMBER_REMOVED or not (replica.copy is None or replica.is_dead)
    return ending.step(replica, deadline=max(leaving, default=now) if lets_drain else now, now=now)


def _stop(replica: Replica) -> Iterable[AnyStep]:
    for member in replica.members:
        if member.deletion_deadline is None:
            words = f"pod {member.name} stops: replica {replica.name} ends"
            yield DeleteMember(name=member.name, uid=member.uid, reason=reasons.MEMBER_STOPPED, message=words)
