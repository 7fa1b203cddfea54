"""Reads one position's share of the weights, in the type and on the device it will have, and checks every tensor's shape.

Invariant: the shape that is checked is the whole tensor's; no more of it than the share is converted and kept.
Does not know which share that is (``position.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from enginehouse_engine.config import ConfigError
from enginehouse_engine.model.linear import Linear
from enginehouse_engine.model.position import Share
from enginehouse_engine.model.weights import WeightSource


class ShareReader:
    """The weights of one share. Reading from several threads is fine."""

    def __init__(self, source: WeightSource, share: Share, dtype: torch.dtype, device: torch.device) -> None:
        self.whole = source.config
        self.share = share
        self._source = source
        self._dtype = dtype
        self._device = device

    def vector(self, name: str, size: int) -> torch.Tensor:
        return self._read(name, (size,)).to(self._device)

    def vocabulary_rows(self, name: str) -> torch.Tensor:
        """The share's rows of an embedding, padded with zeros at the end of the vocabulary."""
        shape = (self.whole.vocabulary_size, self.whole.hidden_size)
        return self._padded_rows(name, shape, self.share.vocabulary).to(self._device)

    def by_rows(self, parts: Sequence[tuple[str, int, range]], columns: int) -> Linear:
        """One product for several weights with the same input, given with all their rows and those of the share."""
        weight = torch.cat([self._padded_rows(f"{name}.weight", (rows, columns), own) for name, rows, own in parts])
        bias = None
        if any(self._source.has(f"{name}.bias") for name, _, _ in parts):
            bias = torch.cat([self._padded_rows(f"{name}.bias", (rows,), own) for name, rows, own in parts]).to(self._device)
        return Linear(weight.to(self._device), bias)

    def by_columns(self, name: str, rows: int, columns: int, own: range, *, with_bias: bool) -> Linear:
        """The summand of a product that the share's inputs make; the bias belongs to one of the summands."""
        weight = self._read(f"{name}.weight", (rows, columns), columns=own).contiguous()
        bias = None
        if with_bias and self._source.has(f"{name}.bias"):
            bias = self._read(f"{name}.bias", (rows,)).to(self._device)
        return Linear(weight.to(self._device), bias)

    def _padded_rows(self, name: str, shape: tuple[int, ...], own: range) -> torch.Tensor:
        last = min(own.stop, shape[0])
        tensor = self._read(name, shape, rows=range(min(own.start, last), last))
        missing = len(own) - len(tensor)
        return functional.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, missing)) if missing else tensor

    def _read(self, name: str, shape: tuple[int, ...], *, rows: range | None = None, columns: range | None = None) -> torch.Tensor:
        found = self._source.shape(name)
        if found != shape:
            raise ConfigError(f"tensor {name} has the shape {found}, the model's configuration says {shape}")
        tensor = self._source.read(name, rows=rows, columns=columns)
        if not tensor.is_floating_point():
            raise ConfigError(f"tensor {name} holds {tensor.dtype}: quantized weights are read from GGUF files only")
        return tensor.to(self._dtype)
