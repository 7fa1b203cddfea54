"""Ranks that come and go while others serve (executor Ray): when a replica is told a new number of them, and what becomes of the
members that no rank needs.

Invariants: one change at a time: a replica is told another number only when its leader's row shows exactly the ranks that it was
told before, and gets more only when nothing is left of those that went; so a row without a rank always means that the rank is out.
A member's pod goes only then, the highest first, its row after it, and only after that another pod may have its name. What is
wanted and ended before a rank needed it is made again, not oftener than every half minute. All of it follows from what is seen:
nothing is remembered. Does not decide what ends a replica (``endings.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from . import reasons
from .api import EngineCopy
from .ranks import Row
from .seen import Member, Replica, ordinals
from .steps import DeleteMember, RemoveRow, ResizeReplica

AGAIN_SECONDS: Final = 30.0
"""From the birth of a pod that ended before any rank needed it to the next one."""


def resize(replica: Replica, data: int, *, generation: int) -> ResizeReplica | None:
    """Tell the replica how many ranks it shall have; None while it is told already, or has yet to do what it was told before."""
    copy = replica.copy
    if copy is None or not copy.is_elastic or not replica.is_live or data == copy.parallelism.data:
        return None
    now, more = copy.parallelism.data, data > copy.parallelism.data
    numbers = ordinals(replica.name, replica.uid)
    known = {member.name for member in replica.members} | {row.name for row in replica.rows}
    if more and any(numbers.get(name, 0) >= copy.members for name in known):
        return None
    # A leader without a row has started nothing, and starts with the number that is written now.
    if replica.leader_ranks is not None and set(replica.leader_ranks) != set(range(now)):
        return None
    if not replica.living_ranks & set(range(data)):
        return None  # what lives would go, with its requests: the replica ends with a drain, and its successor has the number
    count = abs(data - now)
    words = f"{count} rank{'s' if count > 1 else ''} {'more' if more else 'fewer'}"
    return ResizeReplica(
        name=replica.name,
        uid=replica.uid,
        version=replica.version,
        reason=reasons.RANKS_ADDED if more else reasons.RANKS_REMOVED,
        message=f"replica {replica.name} gets {words}: {data} (generation {generation} of the engine)",
        data=data,
    )


def tidy_members(replica: Replica, *, now: datetime) -> Iterable[DeleteMember | RemoveRow]:
    """Take away pods, then rows, of members that no rank needs any more, and of those that are to be made again."""
    copy, idle = replica.copy, replica.idle_members
    if copy is None or not idle:
        return
    for member in sorted(replica.members, key=lambda member: -member.ordinal):
        if member.ordinal < copy.members or not _is_out(replica, copy, member):
            break
        if member.deletion_deadline is None:
            words = f"pod {member.name} stops: replica {replica.name} has no rank for it any more"
            yield DeleteMember(name=member.name, uid=member.uid, reason=reasons.RANKS_REMOVED, message=words)
    for member in replica.members:
        due = replaced_at(replica, member)
        if due is not None and due <= now and member.deletion_deadline is None:
            words = f"pod {member.name} ended before a rank needed it and is made again: {member.failure or 'without a word'}"
            yield DeleteMember(name=member.name, uid=member.uid, reason=reasons.MEMBER_REPLACED, message=words)
    present, numbers = {member.name for member in replica.members}, ordinals(replica.name, replica.uid)
    for place, row in reversed(list(enumerate(replica.rows))):  # the last first: places of the others stay
        if row.name in idle - present:
            why = reasons.RANKS_REMOVED if numbers[row.name] >= copy.members else reasons.MEMBER_REPLACED
            yield _remove(replica, row, place=place, reason=why)


def replaced_at(replica: Replica, member: Member) -> datetime | None:
    """When the pod of a member that is wanted, and ended before any rank needed it, makes room for another one."""
    wanted = 0 if replica.copy is None else replica.copy.members
    if not member.has_ended or member.name not in replica.idle_members or member.ordinal >= wanted:
        return None
    return (member.created or replica.created) + timedelta(seconds=AGAIN_SECONDS)


def next_replacement(replica: Replica) -> datetime | None:
    """The earliest of those."""
    return min(filter(None, (replaced_at(replica, member) for member in replica.members)), default=None)


def _is_out(replica: Replica, copy: EngineCopy, member: Member) -> bool:
    """Whether the leader has let go of all ranks of a member, or has started nothing yet."""
    states = replica.leader_ranks
    if states == {}:
        return False  # its launcher has not said anything yet
    return states is None or not copy.parallelism.ranks_of(member.ordinal) & states.keys()


def _remove(replica: Replica, row: Row, *, place: int, reason: str) -> RemoveRow:
    return RemoveRow(
        name=replica.name,
        uid=replica.uid,
        reason=reason,
        message=f"the row of {row.name} goes from replica {replica.name}: its pod is gone, and no rank needed it",
        member=row.name,
        member_uid=row.uid,
        place=place,
    )
