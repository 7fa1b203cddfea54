"""What the launchers of one replica say to each other, typed: ``docs/wire-protocol.md`` section 7.

Members report up, the leader orders down; both say everything each time, so that the newest message is all that counts. A member
joins once: with its connection everything that it said is over.

Invariant: everything that arrives is validated here; added fields and unknown types are ignored. Pure.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from enginehouse_engine.flags import Options
from enginehouse_engine.launcher.messages import Failed, MessageError
from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.termination import Cause, Exit

VERSION: Final = 1


class Hello(msgspec.Struct, frozen=True, tag="hello", rename="camel"):
    """The first message of a member: all but its number must be as the leader has it."""

    version: int
    replica_uid: str
    member: int
    members: int
    workers_per_member: int
    executor: str
    data: int
    tensor: int
    pipeline: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The leader will not have this member."""

    reason: str


class Death(msgspec.Struct, frozen=True, rename="camel"):
    """A cause as it travels; its fields are those of the termination message."""

    kind: str = msgspec.field(name="class")
    message: str
    role: str = "launcher"
    rank: int | None = None
    incarnation: int | None = None
    pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None

    @property
    def exit(self) -> Exit:
        return Exit(exit_code=self.exit_code, signal=self.signal)

    def cause(self) -> Cause:
        """For the launcher that it came to."""
        named = None
        if self.incarnation is not None:
            named = Process(role=self.role, rank=self.rank, index=0, incarnation=self.incarnation)
        return Cause(kind=self.kind, message=self.message, process=named, pid=self.pid, exit=self.exit)


def death_of(cause: Cause | None) -> Death | None:
    """For the wire."""
    return None if cause is None else msgspec.convert(cause.fields(), Death)


class WorkerState(msgspec.Struct, frozen=True, rename="camel"):
    """What a member knows of one of its workers, from its start on."""

    rank: int
    index: int
    pid: int
    registered: bool
    stage: str
    record: dict[str, Any] | None = None
    failed: Failed | None = None
    died: bool = False
    """It was the first of its rank's part to die."""
    exit: Death | None = None


class Report(msgspec.Struct, frozen=True, tag="report", rename="camel"):
    """A member's whole state."""

    leaving: bool
    """Its pod was asked to stop."""
    workers: tuple[WorkerState, ...]


class RankOrder(msgspec.Struct, frozen=True, rename="camel"):
    """What a member has to know and to do about its part of a rank."""

    rank: int
    state: str
    end: Literal["", "stop", "kill"] = ""
    """``stop``: in order, their core is gone; ``kill``: at once, they are of no use any more."""
    cause: Death | None = None
    """Why it is over, as soon as it is known."""
    peers: dict[str, Any] | None = None
    """For its workers, once all have published."""


class Orders(msgspec.Struct, frozen=True, tag="orders", rename="camel"):
    """The leader's whole word for one member; the first one lets it in."""

    state: str
    """Of the leader: ``Draining`` and ``Ended`` say that the end is planned."""
    ranks: tuple[RankOrder, ...]


FromMember = Hello | Report
FromLeader = Refused | Orders


class _Type(msgspec.Struct, frozen=True):
    type: str


_type = msgspec.json.Decoder(_Type)
_from_member = msgspec.json.Decoder(FromMember)
_from_leader = msgspec.json.Decoder(FromLeader)


def decode_from_member(data: bytes) -> FromMember | None:
    """None for a type that this version does not know. Raises MessageError."""
    try:
        return _from_member.decode(data) if _type.decode(data).type in ("hello", "report") else None
    except msgspec.MsgspecError as error:
        raise MessageError(f"{error}: {data[:200]!r}") from error


def decode_from_leader(data: bytes) -> FromLeader | None:
    """None for a type that this version does not know. Raises MessageError."""
    try:
        return _from_leader.decode(data) if _type.decode(data).type in ("refused", "orders") else None
    except msgspec.MsgspecError as error:
        raise MessageError(f"{error}: {data[:200]!r}") from error


def hello(options: Options) -> Hello:
    """Of this member; the leader's own is what it expects of the others."""
    return Hello(
        version=VERSION,
        replica_uid=options.replica_uid,
        member=options.member,
        members=options.members,
        workers_per_member=options.workers_per_member or 0,
        executor=options.executor,
        data=options.parallel.data,
        tensor=options.parallel.tensor,
        pipeline=options.parallel.pipeline,
    )


def reason_to_refuse(found: Hello, *, expected: Hello, joined: frozenset[int]) -> str:
    """Empty = it may join. A number that was taken once stays taken: a member lives once."""
    for name in found.__struct_fields__:
        ours, theirs = getattr(expected, name), getattr(found, name)
        if name != "member" and ours != theirs:
            return f"the leader has {name} {ours}, this member {theirs}"
    if not 0 < found.member < expected.members:
        return f"there is no member {found.member}: they are 1 to {expected.members - 1}"
    if found.member in joined:
        return f"member {found.member} has joined already"
    return ""
