"""Weights from a GGUF file: the tensor directory, dequantizing, and the way back to Hugging Face names and order.

Invariant: what :class:`GgufWeights` reads equals what the model had before it was converted, up to quantization.
The ``gguf`` package dequantizes; its reader is not used because it spends seconds on the vocabulary (``text/gguf_metadata.py``).
Format: ggml ``docs/gguf.md``.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from enginehouse_engine.config import ConfigError
from enginehouse_engine.model.checked_fields import CheckedFields
from enginehouse_engine.model.model_config import from_gguf
from enginehouse_engine.text.gguf_metadata import GgufError, read_metadata_and_end, read_string

_OUTSIDE_LAYERS: Final = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_IN_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FREQUENCY_DIVISORS: Final = "rope_freqs.weight"
_MOST_DIMENSIONS: Final = 4
_MOST_TENSORS: Final = 1 << 16
_MOST_FREQUENCIES: Final = 1 << 16
_DEFAULT_ALIGNMENT_BYTES: Final = 32
_LARGEST_ALIGNMENT_BYTES: Final = 1 << 21
_KNOWN_QUANTIZATIONS: Final = frozenset(kind.value for kind in gguf.GGMLQuantizationType)


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]
    """Rows first."""
    kind: gguf.GGMLQuantizationType
    start: int
    end: int
    """Bytes of the file."""


class GgufWeights:
    """One mapped file."""

    def __init__(self, path: Path) -> None:
        try:
            metadata, end = read_metadata_and_end(path)
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            fields = CheckedFields(metadata, source=str(path))
            self._tensors = _read_directory(mapped, end, _alignment(fields))
        except (OSError, GgufError, struct.error, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a GGUF file: {error}: download the model again") from error
        self._path = path
        self._data = np.frombuffer(mapped, np.uint8)
        divisors: tuple[float, ...] = ()
        if _FREQUENCY_DIVISORS in self._tensors:
            if math.prod(self._tensors[_FREQUENCY_DIVISORS].shape) > _MOST_FREQUENCIES:
                raise ConfigError(f"tensor {_FREQUENCY_DIVISORS} of {path} is larger than any head: download the model again")
            divisors = tuple(self._dequantize(_FREQUENCY_DIVISORS).ravel().tolist())
        if "token_embd.weight" not in self._tensors:
            raise ConfigError(f"tensor token_embd.weight is not in {path}: it is no language model, or a part of one")
        self.config = from_gguf(
            fields,
            vocabulary_size=self._tensors["token_embd.weight"].shape[0],
            tied_embeddings="output.weight" not in self._tensors,
            frequency_divisors=divisors,
        )

    def has(self, name: str) -> bool:
        return _gguf_name(name) in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[self._stored(name)].shape

    def read(self, name: str, *, rows: range | None = None, columns: range | None = None) -> torch.Tensor:
        stored = self._stored(name)
        array = self._dequantize(stored, rows, columns)
        if self.config.architecture == "llama" and (".attn_q." in stored or ".attn_k." in stored):
            array = _undo_interleaving(array, self.config.head_dim)
        # A float32 tensor is a view of the read-only mapping, which torch must not see.
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    def _stored(self, name: str) -> str:
        stored = _gguf_name(name)
        if stored not in self._tensors:
            raise ConfigError(f"tensor {stored} is not in {self._path}: the file does not hold the model its metadata describes")
        return stored

    def _dequantize(self, stored: str, rows: range | None = None, columns: range | None = None) -> NDArray[Any]:
        tensor = self._tensors[stored]
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
        raw = self._data[tensor.start : tensor.end].reshape(*tensor.shape[:-1], tensor.shape[-1] // block * block_bytes)
        if raw.ndim == 1:
            rows, columns = None, rows
        if rows is not None:
            raw = raw[rows.start : rows.stop]
        if columns is None:
            return self._elements(stored, raw)
        # Only whole blocks can be dequantized.
        first, last = columns.start // block, -(-columns.stop // block)
        array = self._elements(stored, np.ascontiguousarray(raw[..., first * block_bytes : last * block_bytes]))
        return array[..., columns.start - first * block : columns.stop - first * block]

    def _elements(self, stored: str, raw: NDArray[np.uint8]) -> NDArray[Any]:
        match kind := self._tensors[stored].kind:
            case gguf.GGMLQuantizationType.F32:
                return raw.view(np.float32)
            case gguf.GGMLQuantizationType.F16:
                return raw.view(np.float16)
        try:
            return gguf.dequantize(raw, kind)
        except NotImplementedError as error:
            raise ConfigError(f"tensor {stored} of {self._path} has type {kind.name}, which cannot be dequantized") from error


def _gguf_name(name: str) -> str:
    module, _, suffix = name.rpartition(".")
    if known := _OUTSIDE_LAYERS.get(module):
        return f"{known}.{suffix}"
    _, _, layer, module = module.split(".", 3)
    return f"blk.{layer}.{_IN_LAYER[module]}.{suffix}"


def _undo_interleaving(array: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """llama.cpp pairs neighbouring dimensions of a head for rotation; Hugging Face pairs the two halves."""
    return array.reshape(-1, head_dim // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _alignment(fields: CheckedFields) -> int:
    alignment = fields.whole("general.alignment", _DEFAULT_ALIGNMENT_BYTES, least=8, most=_LARGEST_ALIGNMENT_BYTES)
    if alignment & (alignment - 1):
        raise fields.wrong("general.alignment", "a power of two")
    return alignment


def _read_directory(data: mmap.mmap, position: int, alignment: int) -> dict[str, _Tensor]:
    (count,) = struct.unpack_from("<Q", data, 8)
    if count > _MOST_TENSORS:
        raise GgufError(f"wanted at most {_MOST_TENSORS} tensors, found {count}")
    found: list[tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]] = []
    for _ in range(count):
        name, position = read_string(data, position)
        (dimensions,) = struct.unpack_from("<I", data, position)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise GgufError(f"tensor {name!r} has {dimensions} dimensions, wanted 1 to {_MOST_DIMENSIONS}")
        shape = struct.unpack_from(f"<{dimensions}Q", data, position + 4)
        if 0 in shape:
            raise GgufError(f"tensor {name!r} has no elements: its shape is {shape[::-1]}")
        kind, offset = struct.unpack_from("<IQ", data, position + 4 + 8 * dimensions)
        if kind not in _KNOWN_QUANTIZATIONS:
            raise GgufError(f"tensor {name!r} is quantized by method {kind}, which is not known here")
        position += 16 + 8 * dimensions
        found.append((name, shape[::-1], gguf.GGMLQuantizationType(kind), offset))
    first = -(-position // alignment) * alignment
    tensors = {}
    for name, shape, quantization, offset in found:
        block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
        if shape[-1] % block:
            raise GgufError(f"tensor {name!r} has rows of {shape[-1]} elements, no multiple of its block of {block}")
        start = first + offset
        end = start + math.prod(shape) // block * block_bytes
        if end > len(data):
            raise GgufError(f"tensor {name!r} ends at byte {end} of a file of {len(data)} bytes")
        tensors[name] = _Tensor(shape, quantization, start, end)
    return tensors
