"""What the launcher has to be told because of what is so elsewhere: the replica's object, and the rows of its other members. Pure.

Invariants: level-triggered, so the same orders come from the same rows, also in a monitor that was restarted; nothing is ordered
that this pod has done already; only the object itself ends this pod, never that it could not be read. Does not talk to anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from enginehouse_operator.monitor.row import FAILURE_KEYS, Fields, Row

BORN: Final = "RowStored"
RESIZED: Final = "RanksChanged"
REPLICA_DELETED: Final = "ReplicaDeleted"
POD_REPLACED: Final = "PodReplaced"
RANK_DIED_ELSEWHERE: Final = "RankDiedElsewhere"

_DEAD: Final = "Dead"
_PENDING: Final = "Pending"
"""Nothing of it runs yet: a member that is over makes room for another one."""
_CAUSE_KEYS: Final = tuple(key for key in FAILURE_KEYS if key != "evidence")


@dataclass(frozen=True)
class Order:
    """One thing to tell. Two of the same ``reason``, ``ranks`` and ``incarnation`` are one, whatever is known of the cause."""

    reason: str
    ranks: tuple[int, ...] = ()
    incarnation: int = 0
    """Of the rank that died elsewhere, in this pod."""
    cause: Fields | None = field(default=None, compare=False)
    data: int = 0
    """How many ranks the replica shall have."""

    def message(self) -> dict[str, Any]:
        """As the launcher hears it."""
        if self.reason == BORN:
            return {"type": "stored"}
        if self.reason == REPLICA_DELETED:
            return {"type": "drain"}
        if self.reason == RESIZED:
            return {"type": "resize", "data": self.data}
        cause = {} if self.cause is None else {"cause": dict(self.cause)}
        return {"type": "abort", "ranks": list(self.ranks), **cause}


def is_foreign(replica: Fields, *, name: str, uid: str, replica_uid: str) -> bool:
    """It is another replica of the same name, or its row belongs to another pod of this name: this pod must not go on."""
    row = next((member for member in _members(replica) if member.get("name") == name), None)
    return replica["metadata"]["uid"] != replica_uid or (row is not None and row.get("uid") != uid)


def orders(row: Row, replica: Fields | None, *, replica_uid: str) -> tuple[Order, ...]:
    """``row`` is this pod's as it is now, ``replica`` what was seen last; None = it is gone."""
    # A replica that somebody deletes has its successor under the same name, within a second: that cuts no request short either.
    if replica is None or replica["metadata"]["uid"] != replica_uid:
        return (Order(REPLICA_DELETED),)
    living = [rank for rank in row.ranks if rank.get("state") != _DEAD]
    if is_foreign(replica, name=row.name, uid=row.uid, replica_uid=replica_uid):
        return (Order(POD_REPLACED, ranks=tuple(rank["rank"] for rank in living)),) if living else ()
    deleted = (Order(REPLICA_DELETED),) if replica["metadata"].get("deletionTimestamp") else ()
    died = [_died_elsewhere(rank, replica, own_name=row.name) for rank in living if rank.get("state") != _PENDING]
    return (*deleted, *(order for order in died if order is not None))


def resized(replica: Fields) -> tuple[Order, ...]:
    """How many ranks the leader's launcher shall have, where ranks come and go."""
    data = (replica.get("spec") or {}).get("data")
    return (Order(RESIZED, data=data),) if isinstance(data, int) else ()


def dead_elsewhere(replica: Fields, *, own_name: str) -> frozenset[tuple[int, str]]:
    """Ranks that are dead in another member, with its name: for the log, since what lives here may be gone by then."""
    return frozenset(
        (part["rank"], str(member.get("name")))
        for member in _members(replica)
        for part in member.get("ranks") or ()
        if member.get("name") != own_name and part.get("state") == _DEAD
    )


def _died_elsewhere(rank: Fields, replica: Fields, *, own_name: str) -> Order | None:
    number, incarnation = rank["rank"], rank.get("incarnation") or 0
    dead = [
        (member, part)
        for member in _members(replica)
        for part in member.get("ranks") or ()
        if member.get("name") != own_name and part.get("rank") == number and part.get("state") == _DEAD
    ]
    dead = [(member, part) for member, part in dead if (part.get("incarnation") or 0) >= incarnation]
    if not dead:
        return None
    causes = [cause for member, part in dead for cause in _causes(member, part)]
    _, cause = max(causes, key=lambda found: found[0])
    return Order(RANK_DIED_ELSEWHERE, ranks=(number,), incarnation=incarnation, cause=cause)


def _causes(member: Fields, part: Fields) -> Iterator[tuple[tuple[bool, bool, str], Fields]]:
    """All that may have been the cause of a dead part, the likelier the greater; at least one."""
    number = part["rank"]
    text = f"{member.get('name')} says that its part of rank {number} is dead, and not why"
    yield (False, False, ""), {"class": "Unknown", "message": text}
    for failure in member.get("failures") or ():
        # A launcher that died belongs to no rank, and takes all of them with it.
        if failure.get("rank") == number or failure.get("role") == "launcher":
            same_life = failure.get("role") == "launcher" or failure.get("incarnation") == part.get("incarnation")
            cause = {key: failure[key] for key in _CAUSE_KEYS if failure.get(key) is not None}
            yield (True, same_life, failure.get("detectedTime") or ""), {"class": "Unknown", "message": "", **cause}


def _members(replica: Fields) -> list[Fields]:
    return (replica.get("status") or {}).get("members") or []
