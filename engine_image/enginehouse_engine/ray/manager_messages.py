"""What the launcher and its actor manager say to each other, typed: ``docs/wire-protocol.md`` section 8.

Both say everything each time, so that the newest message is all that counts; only how an actor ended is said once.

Invariant: what arrives is validated here; added fields and unknown types are ignored. Pure: knows nothing of Ray, so that the
launcher may read it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

MOST_PLACEMENT_BYTES: Final = 40 * 1024
"""A datagram takes 64 KiB, and the monitor gets this together with the state of everything else."""


class WantedRank(msgspec.Struct, frozen=True):
    """One incarnation of a rank that shall exist."""

    rank: int
    incarnation: int
    members: tuple[int, ...]
    """Number of the member in which worker 0, 1, ... belongs: as many as there are workers."""
    bundles: tuple[int, ...] = ()
    """Index of the bundle of worker 0, 1, ...; empty = by where the bundles are."""


class Actors(msgspec.Struct, frozen=True, tag="actors"):
    """Launcher -> manager: all that shall exist. What is not in it is removed, what is in it and not there is created."""

    engine: str
    """Names of actors and placement groups begin with it."""
    strategy: Literal["Pack", "Spread"]
    resource: str
    """Of which each worker has one: ``GPU``, or any name that the nodes were started with."""
    ranks: tuple[WantedRank, ...]
    number: int = 0
    """Of this list; the next one has a higher one."""


class PlacementState(StrEnum):
    """Of a rank's placement group, and of one bundle of it."""

    PENDING = "Pending"
    LACKING = "Lacking"
    """Of a group: its members have joined, and have no room for it."""
    PLACED = "Placed"
    REMOVING = "Removing"
    """Of a group: nobody wants it any more, and something of it is left."""
    LOST = "Lost"
    """Of a bundle: its node is gone."""


class Bundle(msgspec.Struct, frozen=True):
    """Room for one worker."""

    index: int
    state: str
    node: str = ""
    """Host name of the node, which is the pod's; empty = none yet."""
    lacking: str = ""
    """What has to come before it is placed."""


class RankPlacement(msgspec.Struct, frozen=True):
    """Where a rank incarnation is, or what it waits for."""

    rank: int
    incarnation: int
    strategy: str
    state: str
    bundles: tuple[Bundle, ...]


class Placement(msgspec.Struct, frozen=True, tag="placement"):
    """Manager -> launcher: all rank incarnations of which there is anything. Nothing is left of one that is not in it any more."""

    ranks: tuple[RankPlacement, ...]
    number: int = 0
    """Of the list of actors that the manager knew: a newer one may want what is not here yet."""


def shortened(ranks: tuple[RankPlacement, ...]) -> tuple[RankPlacement, ...]:
    """What fits. Else each rank keeps one bundle: the first that lacks something, if one does."""
    if len(msgspec.json.encode(ranks)) <= MOST_PLACEMENT_BYTES:
        return ranks
    return tuple(
        msgspec.structs.replace(rank, bundles=tuple(sorted(rank.bundles, key=lambda bundle: not bundle.lacking)[:1]))
        for rank in ranks
    )


class How(StrEnum):
    """How an actor ended that was not asked to go."""

    NOT_STARTED = "NotStarted"
    """It never ran: refused, not constructed, or not in time."""
    CRASHED = "Crashed"
    """Its process is gone."""
    RAISED = "Raised"
    """An ordinary exception came out of it."""
    RETURNED = "Returned"
    """Its main function came to its end, exit code 0."""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Manager -> launcher: an actor that is wanted is over."""

    role: str
    rank: int
    index: int
    incarnation: int
    how: How
    message: str


def decode_actors(message: dict[str, Any]) -> Actors:
    """Raises msgspec.ValidationError."""
    return msgspec.convert(message, Actors)
