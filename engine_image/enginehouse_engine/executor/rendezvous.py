"""How the processes of one rank find each other: each publishes one record, and gets everybody's once all have published.

Records travel through the launcher (``docs/wire-protocol.md`` section 2: ``published`` and ``peers``). Whoever publishes has bound
what its record names.

Invariant: peers of another replica, rank or incarnation are refused, and never is anybody left out.
Does not wait: the core and the workers do, each in its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from enginehouse_engine.message_queue import QueueAddress

CORE: Final = "engine-core"
WORKER: Final = "worker"


class PeersRefused(Exception):
    """The launcher's list of peers is not this rank's, or not complete."""


class PeersMissing(Exception):
    """The rank has not come together in time. Who has not published is known to the launcher."""

    failure_class = "StartupTimeout"

    def __init__(self, rank: int, waited_seconds: float) -> None:
        super().__init__(
            f"rank {rank} has not come together in {waited_seconds:.0f} s: not all of its processes have published where they are "
            "to be reached; the launcher's log names the stage of each"
        )


@dataclass(frozen=True)
class Peer:
    """A process of the rank and what it has published."""

    role: str
    index: int
    record: dict[str, Any]

    def queue(self) -> QueueAddress:
        """The queue that it writes. Raises PeersRefused."""
        try:
            return msgspec.convert(self.record.get("queue"), QueueAddress)
        except msgspec.ValidationError as error:
            raise PeersRefused(f"the record of {self.role} {self.index} has a queue, found {self.record}: {error}") from error


class Rendezvous(Protocol):
    """What a process of a rank needs of its launcher."""

    def publish(self, record: dict[str, Any]) -> None:
        """Say where this process is to be reached. Once."""

    def peers(self, *, deadline_seconds: float) -> tuple[Peer, ...]:
        """Everybody's records, this process's own among them. Raises PeersMissing and PeersRefused."""
        ...


def queue_record(address: QueueAddress, **others: str) -> dict[str, Any]:
    """What a process publishes."""
    return {"queue": msgspec.to_builtins(address), **others}


def peers_of(message: dict[str, Any], *, replica_uid: str, rank: int, incarnation: int) -> tuple[Peer, ...]:
    """The launcher's ``peers``. Raises PeersRefused."""
    wanted = {"replicaUid": replica_uid, "rank": rank, "incarnation": incarnation}
    found = {key: message.get(key) for key in wanted}
    if found != wanted:
        raise PeersRefused(f"peers of {wanted} were expected, found those of {found}")
    try:
        return tuple(msgspec.convert(message.get("records"), list[Peer]))
    except msgspec.ValidationError as error:
        raise PeersRefused(f"peers are [{{role, index, record}}], found {message}: {error}") from error


def peer(peers: Sequence[Peer], role: str, index: int) -> Peer:
    """One of them. Raises PeersRefused."""
    for each in peers:
        if (each.role, each.index) == (role, index):
            return each
    there = ", ".join(f"{each.role} {each.index}" for each in peers)
    raise PeersRefused(f"{role} {index} is not among the peers: found {there}")
