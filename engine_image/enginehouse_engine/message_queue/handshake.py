"""How a reader attaches: the control messages of both transports, and who is let in.

On this node they are datagrams of a UNIX socket (SOCK_SEQPACKET); the welcome carries four descriptors: the ring (read-only), the
reader's page, the eventfd that wakes the reader, the eventfd that wakes the writer. The socket stays open: its end of file tells
each side that the other is gone. From another node they are single frames of a DEALER socket.

Invariant: a reader is an identity, not a message: one that attaches twice counts once, and only a newer generation of it
replaces it. The decision is pure. Does not open sockets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from enginehouse_engine.decode_errors import DECODE_ERRORS
from enginehouse_engine.message_queue.address import QueueAddress
from enginehouse_engine.message_queue.errors import QueueCorrupt, ReaderRefused

HANDSHAKE_VERSION: Final = 1
LARGEST_CONTROL_BYTES: Final = 4096
WELCOME_DESCRIPTORS: Final = 4


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """Reader to writer, first."""

    version: int
    key: str
    reader: str
    generation: int
    """How many processes have been this reader before, plus one."""


class Acknowledge(msgspec.Struct, frozen=True, tag="acknowledge"):
    """Remote reader to writer: everything up to here is copied. On this node the reader's page says it."""

    sequence: int


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """Writer to reader: you get every message from ``first_sequence`` on."""

    first_sequence: int
    ring_bytes: int = 0
    position: int = 0
    """Where in the ring the first one will start."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    reason: str


class Dismissed(msgspec.Struct, frozen=True, tag="dismissed"):
    reason: str


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """To remote readers, the last message; on this node the ring's counters say it."""


FromReader = Attach | Acknowledge
ToReader = Welcome | Refused | Dismissed | Closed

_encoder = msgspec.msgpack.Encoder()
_from_reader: msgspec.msgpack.Decoder[FromReader] = msgspec.msgpack.Decoder(FromReader)
_to_reader: msgspec.msgpack.Decoder[ToReader] = msgspec.msgpack.Decoder(ToReader)


def encode(message: FromReader | ToReader) -> bytes:
    return _encoder.encode(message)


def decode_from_reader(data: bytes) -> FromReader:
    """Raises QueueCorrupt."""
    try:
        return _from_reader.decode(data)
    except DECODE_ERRORS as error:
        raise QueueCorrupt(f"undecodable control message of {len(data)} bytes from a reader: {error}") from error


def decode_to_reader(data: bytes) -> ToReader:
    """Raises QueueCorrupt."""
    try:
        return _to_reader.decode(data)
    except DECODE_ERRORS as error:
        raise QueueCorrupt(f"undecodable control message of {len(data)} bytes from a writer: {error}") from error


def first_message(address: QueueAddress, *, reader: str, generation: int) -> bytes:
    """With it a reader attaches."""
    return encode(Attach(version=HANDSHAKE_VERSION, key=address.key, reader=reader, generation=generation))


def welcome_in(data: bytes, *, address: QueueAddress, reader: str) -> Welcome:
    """The writer's answer to it. Raises ReaderRefused with the writer's reason, and QueueCorrupt."""
    answer = decode_to_reader(data)
    if isinstance(answer, Refused):
        raise ReaderRefused(f"reader {reader!r} was refused: {answer.reason}")
    if not isinstance(answer, Welcome):
        raise QueueCorrupt(f"{address} answered {answer} to an attach")
    return answer


def reason_to_refuse(
    attach: Attach, *, address: QueueAddress, expected: Collection[str], attached_generations: Mapping[str, int]
) -> str:
    """Why this reader is not let in; empty = it is. ``attached_generations``: the newest of each reader that ever attached."""
    if attach.version != HANDSHAKE_VERSION:
        return f"{address} speaks version {HANDSHAKE_VERSION} of the handshake, the reader {attach.version}"
    if attach.key != address.key:
        return f"{address} has another key: the address is of another queue or of an earlier writer"
    if attach.reader not in expected:
        return f"{address} expects {', '.join(sorted(expected))}, not {attach.reader!r}"
    newest = attached_generations.get(attach.reader, 0)
    if attach.generation <= newest:
        return f"{attach.reader!r} has attached to {address} with generation {newest} already, found {attach.generation}"
    return ""
