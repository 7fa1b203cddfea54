"""Messages to frames and back: msgpack for what is small, one frame for each array. Never pickle.

A message is any type that msgspec knows (structs, frozen dataclasses, tuples, unions of tagged structs), with numpy arrays anywhere
in it. The first frame is the msgpack document; an array stands in it as an extension of (dtype, shape, number of its frame).

Invariant: a decoded array owns its memory: its frame is a ``bytearray`` that only this array refers to, writable, freed with it.
The codec hands out nothing that it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginehouse_engine.decode_errors import DECODE_ERRORS
from enginehouse_engine.message_queue.errors import QueueCorrupt
from enginehouse_engine.message_queue.payload import Buffer

_ARRAY: Final = 1
"""The msgpack extension of an array."""
_NUMBERS: Final = "biuf"
"""Kinds of dtype that may travel: booleans, integers and floats. No objects, no records."""

_Message = TypeVar("_Message")


class _ArrayPlace(msgspec.Struct, frozen=True, array_like=True):
    dtype: str
    shape: tuple[int, ...]
    frame: int


class MessageCodec(Generic[_Message]):
    """For messages of one type (or union). For one thread at a time."""

    def __init__(self, message_type: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._encode_array)
        self._decoder: msgspec.msgpack.Decoder[_Message] = msgspec.msgpack.Decoder(
            message_type, ext_hook=self._decode_array, dec_hook=_check_array
        )
        self._place = msgspec.msgpack.Decoder(_ArrayPlace)
        self._outgoing: list[Buffer] = []
        self._incoming: Sequence[bytearray] = ()
        self._taken: set[int] = set()

    def encode(self, message: _Message) -> list[Buffer]:
        """Frames for :meth:`Writer.send`. Views of the message's arrays, not copies: send them before the arrays change.

        Raises TypeError for what is neither a msgspec type nor an array of numbers.
        """
        self._outgoing = [b""]
        try:
            self._outgoing[0] = self._encoder.encode(message)
            return self._outgoing
        finally:
            self._outgoing = []

    def decode(self, frames: Sequence[bytearray]) -> _Message:
        """The message. Its arrays take the frames over. Raises QueueCorrupt when the frames are no such message."""
        if not frames:
            raise QueueCorrupt("a message has a document, found no frames")
        self._incoming = frames
        self._taken = set()
        try:
            message = self._decoder.decode(frames[0])
            if len(self._taken) != len(frames) - 1:
                raise QueueCorrupt(f"{len(frames) - 1} arrays came, {len(self._taken)} belong to the message")
            return message
        except DECODE_ERRORS as error:
            raise QueueCorrupt(f"undecodable message of {len(frames[0])} bytes: {error}") from error
        finally:
            self._incoming = ()

    def _encode_array(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray) or value.dtype.kind not in _NUMBERS:
            what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(f"a message holds msgspec types and arrays of numbers, found {what}")
        place = _ArrayPlace(dtype=value.dtype.newbyteorder("<").str, shape=value.shape, frame=len(self._outgoing))
        flat = np.ascontiguousarray(value, dtype=place.dtype).reshape(-1)
        self._outgoing.append(flat.view(np.uint8).data if flat.size else b"")
        return msgspec.msgpack.Ext(_ARRAY, self._encoder.encode(place))

    def _decode_array(self, code: int, data: memoryview) -> NDArray[Any]:
        if code != _ARRAY:
            raise QueueCorrupt(f"extension {_ARRAY} was expected, found {code}")
        place = self._place.decode(data)
        if not 0 < place.frame < len(self._incoming) or place.frame in self._taken:
            raise QueueCorrupt(f"an array in frame {place.frame} of {len(self._incoming)}, or there for the second time")
        if len(place.dtype) > 4 or place.dtype[1:2] not in tuple(_NUMBERS) or min(place.shape, default=0) < 0:
            raise QueueCorrupt(f"an array of numbers was expected, found {place.dtype!r} {place.shape}")
        try:
            dtype = np.dtype(place.dtype)
        except TypeError as error:
            raise QueueCorrupt(f"unknown dtype {place.dtype!r}") from error
        frame = self._incoming[place.frame]
        if math.prod(place.shape) * dtype.itemsize != len(frame):
            raise QueueCorrupt(f"an array of {dtype} {place.shape} in a frame of {len(frame)} bytes")
        self._taken.add(place.frame)
        return np.frombuffer(frame, dtype).reshape(place.shape) if frame else np.empty(place.shape, dtype)


def _check_array(expected: Any, value: Any) -> Any:
    """That an annotated field gets what it says: an array, of the dtype if one is named."""
    if not isinstance(value, np.ndarray):
        raise QueueCorrupt(f"an array was expected ({expected}), found {type(value).__name__}")
    named = [argument for dtype in get_args(expected)[1:] for argument in get_args(dtype)]
    if named and isinstance(named[0], type) and value.dtype.type is not named[0]:
        raise QueueCorrupt(f"an array of {named[0].__name__} was expected, found {value.dtype}")
    return value
