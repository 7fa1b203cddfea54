"""What the launcher hears from its processes and from the monitor, typed: ``docs/wire-protocol.md`` sections 2 and 3.

Invariant: everything that arrives is validated here; added fields and unknown types are ignored. What the launcher itself says
are plain dictionaries, made where it is decided.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

VERSION: Final = 1


class MessageError(Exception):
    """A message that is not what the protocol allows: says what was found."""


class Register(msgspec.Struct, frozen=True, tag="register", rename="camel"):
    """The first message of a process; its two descriptors come with it."""

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


class Fit(msgspec.Struct, frozen=True, rename="camel"):
    """What one rank can take: tokens, and blocks of its KV cache."""

    rank: int
    incarnation: int
    max_context_length: int
    kv_blocks: int


class Ready(msgspec.Struct, frozen=True, tag="ready", rename="camel"):
    """An API server serves, with these ranks."""

    ranks: tuple[Fit, ...]
    max_context_length: int
    """The minimum over the ranks: what the server accepts."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Why the process is about to exit."""

    cause: str = msgspec.field(name="class")
    message: str


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """No request is under way in this API server, and none will be."""


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """The row with this pod's UID is in the API."""


class Drain(msgspec.Struct, frozen=True, tag="drain", rename="camel"):
    """End in order: finish requests for so long."""

    timeout_seconds: float


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End these ranks at once; they cannot be of use any more."""

    ranks: tuple[int, ...]


class _Type(msgspec.Struct, frozen=True):
    type: str


FromProcess = Register | Stage | Bound | Published | Ready | Failed | Drained
FromMonitor = Stored | Drain | Abort

_type = msgspec.json.Decoder(_Type)
_from_process = msgspec.json.Decoder(FromProcess)
_from_monitor = msgspec.json.Decoder(FromMonitor)
_process_types: Final = frozenset({"register", "stage", "bound", "published", "ready", "failed", "drained"})
_monitor_types: Final = frozenset({"stored", "drain", "abort"})


def decode_from_process(data: bytes) -> FromProcess | None:
    """None for a type that this version does not know. Raises MessageError."""
    try:
        return _from_process.decode(data) if _type.decode(data).type in _process_types else None
    except msgspec.MsgspecError as error:
        raise MessageError(f"{error}: {data[:200]!r}") from error


def decode_from_monitor(data: bytes) -> FromMonitor | None:
    """None for a type that this version does not know. Raises MessageError."""
    try:
        return _from_monitor.decode(data) if _type.decode(data).type in _monitor_types else None
    except msgspec.MsgspecError as error:
        raise MessageError(f"{error}: {data[:200]!r}") from error
