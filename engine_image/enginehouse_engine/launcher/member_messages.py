"""What the launchers of one replica say to each other, typed: ``docs/wire-protocol.md`` section 7.

Members report up, the leader orders down; both say everything each time, so that the newest message is all that counts. A member
joins once: with its connection everything that it said is over.

Invariant: everything that arrives is validated here; added fields and unknown types are ignored. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from enginehouse_engine.launcher.messages import Count, Death, Failed, decoder_of, refuse_depth
from enginehouse_engine.options import Options

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


class WorkerState(msgspec.Struct, frozen=True, rename="camel"):
    """What a member knows of one of its workers, from its start on."""

    rank: Count
    index: Count
    pid: Count
    registered: bool
    stage: str
    incarnation: Count = 1
    record: dict[str, Any] | None = None
    failed: Failed | None = None
    stopped: bool = False
    """By a signal, and not continued: its launcher judges that, and the engine core that waits for it is not to blame."""
    died: bool = False
    """It was the first of its rank's part to die."""
    exit: Death | None = None

    def __post_init__(self) -> None:
        refuse_depth(self.record)


class Report(msgspec.Struct, frozen=True, tag="report", rename="camel"):
    """A member's whole state."""

    leaving: bool
    """Its pod was asked to stop."""
    workers: tuple[WorkerState, ...]


class RankOrder(msgspec.Struct, frozen=True, rename="camel"):
    """What a member has to know and to do about its part of a rank."""

    rank: int
    state: str
    incarnation: int = 1
    """Of the workers that shall be there."""
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
    ray: str = ""
    """With executor Ray: where the head of its cluster is, once it runs."""


FromMember = Hello | Report
FromLeader = Refused | Orders

decode_from_member: Final[Callable[[bytes], FromMember | None]] = decoder_of(FromMember)
decode_from_leader: Final[Callable[[bytes], FromLeader | None]] = decoder_of(FromLeader)


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
    """Empty = it may join. With Ray, ranks and their members come and go while the leader lives."""
    grows = expected.executor == "Ray"
    for name in found.__struct_fields__:
        ours, theirs = getattr(expected, name), getattr(found, name)
        if name not in (("member", "members", "data") if grows else ("member",)) and ours != theirs:
            if name == "replica_uid":
                # Whoever knows the leader's is let in, so that nobody hears it from here.
                return f"the leader is of another replica than {theirs!r}"
            return f"the leader has {name} {ours}, this member {theirs}"
    if found.member < 1 or not (grows or found.member < expected.members):
        return f"there is no member {found.member}: they are 1 to {expected.members - 1}"
    if found.member in joined:
        return f"member {found.member} has joined already"
    return ""
