"""Reads the key-value part of a GGUF file, and nothing behind it.

The reader of the ``gguf`` package keeps every string of an array as its own numpy view: 2.8 s and 0.8 s of imports for a
vocabulary of 49,152 tokens. An API server that answers within half a second cannot wait for that, so this walks the mapped bytes.

Invariant: a length that points outside the file, or far into its tensors, is an error and never an allocation. Reads no tensors.
Format: ggml ``docs/gguf.md``, versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

MAGIC: Final = b"GGUF"
LARGEST_METADATA_BYTES: Final = 64 * 1024 * 1024
"""Several times the largest vocabulary there is. What a broken file can have us make is bounded by this, and not by its size."""

_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final[Mapping[int, struct.Struct]] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_LENGTH: Final = struct.Struct("<Q")
_TYPE: Final = struct.Struct("<I")
_ARRAY_HEAD: Final = struct.Struct("<IQ")


class GgufError(Exception):
    """The file is not a GGUF file that can be read: what was wanted, what was found."""


def read_metadata(path: Path) -> dict[str, Any]:
    """All metadata of the file: numbers, booleans, strings and lists of them. Raises GgufError, or OSError."""
    return read_metadata_and_end(path)[0]


def read_metadata_and_end(path: Path) -> tuple[dict[str, Any], int]:
    """The metadata, and the byte after it, where the directory of tensors begins. Raises GgufError, or OSError."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise GgufError(f"{path} does not start with the bytes GGUF: it is no GGUF file")
        size = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), min(size, LARGEST_METADATA_BYTES), access=mmap.ACCESS_READ) as data:
            try:
                return _read(data)
            except (struct.error, UnicodeDecodeError, GgufError, RecursionError) as error:
                looked_at = f", of which the first {len(data)} are looked at" if len(data) < size else ""
                raise GgufError(f"the metadata of {path} ({size} bytes{looked_at}) cannot be read: {error}") from error


def _read(data: mmap.mmap) -> tuple[dict[str, Any], int]:
    (version,) = _TYPE.unpack_from(data, 4)
    if version not in (2, 3):
        raise GgufError(f"wanted GGUF version 2 or 3, found {version}")
    (count,) = _LENGTH.unpack_from(data, 16)
    position = 24
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key, position = read_string(data, position)
        (kind,) = _TYPE.unpack_from(data, position)
        metadata[key], position = _value(data, position + 4, kind)
    return metadata, position


def _value(data: mmap.mmap, position: int, kind: int) -> tuple[Any, int]:
    if scalar := _SCALARS.get(kind):
        return scalar.unpack_from(data, position)[0], position + scalar.size
    if kind == _STRING:
        return read_string(data, position)
    if kind == _ARRAY:
        return _array(data, position)
    raise GgufError(f"unknown value type {kind} at byte {position}")


def _array(data: mmap.mmap, position: int) -> tuple[list[Any], int]:
    kind, count = _ARRAY_HEAD.unpack_from(data, position)
    position += _ARRAY_HEAD.size
    if scalar := _SCALARS.get(kind):
        end = position + count * scalar.size
        if end > len(data):
            raise GgufError(f"an array of {count} values at byte {position} reaches beyond the end of the file")
        return [value for (value,) in scalar.iter_unpack(data[position:end])], end
    if kind != _STRING:
        values = []
        for _ in range(count):
            value, position = _value(data, position, kind)
            values.append(value)
        return values, position
    # The loop that the start-up time hangs on: one pass per token of the vocabulary, so no call for each string.
    strings: list[str] = []
    append, length_at, size = strings.append, _LENGTH.unpack_from, len(data)
    for _ in range(count):
        start = position + 8
        position = start + length_at(data, position)[0]
        if position > size:
            raise GgufError(f"a string at byte {start} reaches beyond the end of the file")
        append(data[start:position].decode())
    return strings, position


def read_string(data: mmap.mmap, position: int) -> tuple[str, int]:
    """A string (its length, then its bytes), and the byte after it. Raises GgufError, struct.error and UnicodeDecodeError."""
    start = position + 8
    end = start + _LENGTH.unpack_from(data, position)[0]
    if end > len(data):
        raise GgufError(f"a string at byte {start} reaches beyond the end of the file")
    return data[start:end].decode(), end
