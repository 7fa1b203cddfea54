"""Attention over a paged KV cache, on any device, with torch's own kernels.

Invariant: a step's geometry (slots, gathers, masks) is worked out once and shared by all layers; memory for gathered keys and
values is bounded by the buffer given at the start, however long and many the sequences are.
A layer's cache is (blocks, block size, 2 x kv heads x head dim): keys, then values of a token side by side, so that one copy
writes a token and one gather reads a context.
Does not know weights, and nothing about requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from enginehouse_engine.executor.contract import Int32s, StepInput
from enginehouse_engine.model.host_memory import lazy_zeros
from enginehouse_engine.model.model_config import ModelConfig

_PADDING_BLOCKS: Final = 16
"""Padding that costs less than the kernel calls of one more group."""


class _View(NamedTuple):
    """What queries see of a context."""

    tokens: slice
    mask: torch.Tensor | None
    """Additive (sequences, 1, queries, tokens). None = a lone token sees all of them, a prompt's tokens those up to their own."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences whose attention is one kernel call, all with the same number of new tokens."""

    rows: slice
    """Of the step's tokens."""
    sequences: int
    blocks: torch.Tensor | None
    """(sequences x width,) to gather, or None: the context is exactly this step's tokens."""
    views: dict[int | None, _View]
    """By window."""


@dataclass(frozen=True, slots=True)
class StepGeometry:
    """Where a step's tokens go and what they see."""

    positions: torch.Tensor
    """(T,)"""
    slots: torch.Tensor
    """(T,) of the cache, in tokens."""
    groups: tuple[_Group, ...]


class PagedAttention:
    """The KV cache of all layers, and attention over it."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        block_size: int,
        total_blocks: int,
        gather_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """``gather_tokens``: most context tokens gathered at once; at least the longest context, rounded up to blocks."""
        self._config = config
        self._block_size = block_size
        self._width = 2 * config.kv_heads * config.head_dim
        self._dtype = dtype
        self._device = device
        self._windows = set(config.windows)
        # Zeros, not whatever was there: padding is multiplied by a weight of zero, which a stray infinity would survive.
        self._caches = [
            lazy_zeros((total_blocks, block_size, self._width), dtype=dtype, device=device) for _ in range(config.layers)
        ]
        self._gather_blocks = -(-gather_tokens // block_size)
        self._gathered = torch.empty(self._gather_blocks, block_size, self._width, dtype=dtype, device=device)

    def touch(self) -> None:
        """Make the gather buffer resident, so that a measurement of memory sees it."""
        self._gathered.zero_()

    def geometry(self, step: StepInput) -> StepGeometry:
        """Work out a step. One-token sequences at its beginning are grouped, the others stand alone."""
        starts = step.context_lengths - step.query_lengths
        offsets = np.cumsum(step.query_lengths) - step.query_lengths
        rows = np.repeat(np.arange(len(starts)), step.query_lengths)
        positions = starts[rows] + np.arange(len(rows)) - offsets[rows]
        blocks = step.block_tables[rows, positions // self._block_size]
        slots = blocks.astype(np.int64) * self._block_size + positions % self._block_size
        ones = step.query_lengths == 1
        decoding = len(ones) if ones.all() else int(np.argmin(ones))
        groups = self._decoding_groups(step, decoding)
        groups += [self._prompt_group(step, row, int(offsets[row])) for row in range(decoding, len(ones))]
        return StepGeometry(self._tensor(positions), self._tensor(slots), tuple(groups))

    def write(self, layer: int, keys_values: torch.Tensor, geometry: StepGeometry) -> None:
        """Store ``keys_values`` (T, 2 x kv heads x head dim)."""
        self._caches[layer].view(-1, self._width).index_copy_(0, geometry.slots, keys_values)

    def attend(self, layer: int, queries: torch.Tensor, keys_values: torch.Tensor, geometry: StepGeometry) -> torch.Tensor:
        """What ``queries`` (T, heads, head dim) see, (T, heads x head dim); this step's keys and values are written already."""
        config = self._config
        shared = config.heads // config.kv_heads
        outputs = []
        window = config.windows[layer]
        for group in geometry.groups:
            n = group.sequences
            new = group.rows.stop - group.rows.start
            if group.blocks is None:
                context = keys_values[group.rows].view(n, -1, 2, config.kv_heads, config.head_dim)
            else:
                gathered = self._gathered[: len(group.blocks)]
                torch.index_select(self._caches[layer], 0, group.blocks, out=gathered)
                context = gathered.view(n, -1, 2, config.kv_heads, config.head_dim)
            seen, mask = group.views[window]
            keys, values = context[:, seen, 0].transpose(1, 2), context[:, seen, 1].transpose(1, 2)
            query = queries[group.rows]
            if new == n:
                # One new token each: the query heads that share a key head stand where a prompt's tokens would.
                query = query.view(n, config.kv_heads, shared, config.head_dim)
                output = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
                outputs.append(output.reshape(n, -1))
            else:
                query = query.view(new, config.kv_heads, shared, config.head_dim).permute(1, 2, 0, 3)
                keys = keys[0].unsqueeze(1).expand(-1, shared, -1, -1)
                values = values[0].unsqueeze(1).expand(-1, shared, -1, -1)
                output = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=mask is None)
                outputs.append(output.permute(2, 0, 1, 3).reshape(new, -1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _decoding_groups(self, step: StepInput, count: int) -> list[_Group]:
        """Neighbours together while the buffer holds their contexts, padded to the longest, and little of that is padding."""
        groups: list[_Group] = []
        widths = (-(-step.context_lengths[:count] // self._block_size)).tolist()
        first = 0
        while first < count:
            last, width, blocks_in_use = first + 1, widths[first], widths[first]
            while last < count:
                wider, more = max(width, widths[last]), blocks_in_use + widths[last]
                padded = wider * (last + 1 - first)
                if padded > self._gather_blocks or padded > more * 5 // 4 + _PADDING_BLOCKS:
                    break
                last, width, blocks_in_use = last + 1, wider, more
            lengths = step.context_lengths[first:last]
            views = {window: self._decoding_view(lengths, width, window) for window in self._windows}
            blocks = self._tensor(step.block_tables[first:last, :width].ravel())
            groups.append(_Group(slice(first, last), last - first, blocks, views))
            first = last
        return groups

    def _decoding_view(self, lengths: Int32s, width: int, window: int | None) -> _View:
        if len(lengths) == 1:
            # No mask: with one, attention alone takes half as long again.
            length = int(lengths[0])
            return _View(slice(0 if window is None else max(0, length - window), length), None)
        places = np.arange(width * self._block_size)
        hidden = places >= lengths[:, None]
        if window is not None:
            hidden |= places < lengths[:, None] - window
        return _View(slice(len(places)), self._mask(hidden[:, None, None, :]))

    def _prompt_group(self, step: StepInput, row: int, offset: int) -> _Group:
        new, length = int(step.query_lengths[row]), int(step.context_lengths[row])
        width = -(-length // self._block_size)
        blocks = None if new == length else self._tensor(step.block_tables[row, :width])
        views = {window: _View(slice(length), self._prompt_mask(new, length, window)) for window in self._windows}
        return _Group(slice(offset, offset + new), 1, blocks, views)

    def _prompt_mask(self, new: int, length: int, window: int | None) -> torch.Tensor | None:
        if new == length and (window is None or window >= length):
            return None
        places = np.arange(length)
        positions = np.arange(length - new, length)[:, None]
        hidden = places > positions
        if window is not None:
            hidden |= places <= positions - window
        return self._mask(hidden[None, None])

    def _mask(self, hidden: np.typing.NDArray[np.bool_]) -> torch.Tensor:
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(torch.from_numpy(hidden).to(self._device), -torch.inf)

    def _tensor(self, array: np.typing.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self._device)
