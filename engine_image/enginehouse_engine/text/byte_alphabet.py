"""The alphabet in which byte-level BPE vocabularies are written: one printable character for each of the 256 bytes.

Source: Radford et al., GPT-2 ``encoder.py``: printable Latin-1 stands for itself, the other bytes are moved to U+0100 and up in
order. ``tokenizers`` uses the same table but does not hand it out with its bytes. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_PRINTABLE: Final = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_MOVED: Final = [byte for byte in range(256) if byte not in set(_PRINTABLE)]

BYTE_TO_CHARACTER: Final[Mapping[int, str]] = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + place) for place, byte in enumerate(_MOVED)
}
CHARACTER_TO_BYTE: Final[Mapping[str, int]] = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
