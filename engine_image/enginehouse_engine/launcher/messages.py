"""What the launcher hears from its processes and from the monitor, typed: ``docs/wire-protocol.md`` sections 2 and 3.

Invariant: everything that arrives is validated here; added fields and unknown types are ignored. What the launcher itself says
are plain dictionaries, made where it is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import UnionType
from typing import Annotated, Any, Final, get_args

import msgspec

from enginehouse_engine.decode_errors import DECODE_ERRORS
from enginehouse_engine.ray.manager_messages import Ended, Placement

VERSION: Final = 1

MOST_RANKS: Final = 1024
"""More than a replica of the API can have."""
_MOST_LEVELS: Final = 16
"""Of a record: ours have two."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Kind = Annotated[str, msgspec.Meta(max_length=128)]
"""As in the schema of the row: one that the API refuses would never be told."""


class MessageError(Exception):
    """A message that is not what the protocol allows: says what was found."""


def refuse_depth(record: Any) -> None:
    """Raises ValueError, which the decoder turns into its own. What it takes may be too deep for those who say it on."""
    level, values = 0, [record]
    while values := [inner for value in values for inner in _inside(value)]:
        level += 1
        if level > _MOST_LEVELS:
            raise ValueError(f"a record is nested more than {_MOST_LEVELS} levels deep")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


class Register(msgspec.Struct, frozen=True, tag="register", rename="camel"):
    """The first message of a process; its descriptors come with it."""

    version: int
    role: str
    rank: int | None
    index: int
    incarnation: int
    pid: int


class Stage(msgspec.Struct, frozen=True, tag="stage"):
    """What the process does now."""

    stage: str


class Bound(msgspec.Struct, frozen=True, tag="bound"):
    """An API server's ROUTER socket has this address."""

    endpoint: str


class Published(msgspec.Struct, frozen=True, tag="published"):
    """Where a process of a rank can be reached by the others of its rank. What is in it is theirs to know."""

    record: dict[str, Any]

    def __post_init__(self) -> None:
        refuse_depth(self.record)


class Fit(msgspec.Struct, frozen=True, rename="camel"):
    """What one rank can take: tokens, and blocks of its KV cache."""

    rank: Count
    incarnation: Count
    max_context_length: Count
    kv_blocks: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Ready(msgspec.Struct, frozen=True, tag="ready", rename="camel"):
    """An API server serves, with these ranks."""

    ranks: tuple[Fit, ...]
    max_context_length: int
    """The minimum over the ranks: what the server accepts."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Why the process is about to exit."""

    cause: Kind = msgspec.field(name="class")
    message: str


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """No request is under way in this API server, and none will be."""


class RankDrained(msgspec.Struct, frozen=True, tag="rankDrained"):
    """At this rank, which is about to leave, this API server has no request, and will have none."""

    rank: int
    incarnation: int


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to a ``ping``: the process's main loop goes round. Of an engine core also how far it is."""

    steps: int = 0
    """How many it has computed."""
    requests: int = 0
    """How many it has to compute for."""


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """The row with this pod's UID is in the API."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """The replica ends: finish requests, for as long as this pod's own time to drain is."""


class Death(msgspec.Struct, frozen=True, rename="camel"):
    """A cause as it travels; its fields are those of the termination message."""

    kind: Kind = msgspec.field(name="class")
    message: str
    role: Annotated[str, msgspec.Meta(max_length=64)] = "launcher"
    rank: Count | None = None
    incarnation: Count | None = None
    pid: Count | None = None
    exit_code: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    signal: Annotated[int, msgspec.Meta(ge=1, le=127)] | None = None
    """More would wrap the exit code that is made of it round, to 0 at worst."""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End these ranks at once; they cannot be of use any more."""

    ranks: tuple[int, ...]
    cause: Death | None = None
    """They have died elsewhere, of this; None = nobody wants them any more."""


class Resize(msgspec.Struct, frozen=True, tag="resize"):
    """How many ranks there shall be."""

    data: Annotated[int, msgspec.Meta(ge=1, le=MOST_RANKS)]


class _Type(msgspec.Struct, frozen=True):
    type: str


FromProcess = Register | Stage | Bound | Published | Ready | Failed | Drained | RankDrained | Pong | Placement | Ended
FromMonitor = Stored | Drain | Abort | Resize

_type = msgspec.json.Decoder(_Type)


def decoder_of(union: UnionType) -> Callable[[bytes], Any]:
    """Of messages of these types. It returns None for a type that this version does not know, and raises MessageError."""
    decoder = msgspec.json.Decoder(union)
    known = {message.__struct_config__.tag for message in get_args(union)}

    def decode(data: bytes) -> Any:
        try:
            return decoder.decode(data) if _type.decode(data).type in known else None
        except DECODE_ERRORS as error:
            raise MessageError(f"{error}: {data[:200]!r}") from error

    return decode


decode_from_process: Final[Callable[[bytes], FromProcess | None]] = decoder_of(FromProcess)
decode_from_monitor: Final[Callable[[bytes], FromMonitor | None]] = decoder_of(FromMonitor)
