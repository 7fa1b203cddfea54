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
    """What queries see, of the gather buffer."""

    keys: torch.Tensor
    """(sequences, kv heads, tokens, head dim); of a prompt (kv heads, query heads for each, tokens, head dim)."""
    values: torch.Tensor
    mask: torch.Tensor | None
    """Additive (sequences, 1, queries, tokens). None = a lone token sees all of them, a prompt's tokens those up to their own."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences whose attention is one kernel call, all with the same number of new tokens."""

    rows: slice
    """Of the step's tokens."""
    sequences: int
    blocks: torch.Tensor
    """(sequences x width,) of the cache, all layers'."""
    gathered: torch.Tensor
    """Where they are put side by side."""
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
        shape = (total_blocks, block_size, self._width)
        self._blocks = [lazy_zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self._slots = [blocks.view(-1, self._width) for blocks in self._blocks]
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
        self._slots[layer].index_copy_(0, geometry.slots, keys_values)

    def attend(self, layer: int, queries: torch.Tensor, geometry: StepGeometry) -> torch.Tensor:
        """What ``queries`` (T, heads, head dim) see, (T, heads x head dim); this step's keys and values are written already."""
        config = self._config
        shared = config.heads // config.kv_heads
        outputs = []
        window = config.windows[layer]
        for group in geometry.groups:
            torch.index_select(self._blocks[layer], 0, group.blocks, out=group.gathered)
            keys, values, mask = group.views[window]
            query = queries[group.rows]
            if len(query) == group.sequences:
                # One new token each: the query heads that share a key head stand where a prompt's tokens would.
                query = query.view(-1, config.kv_heads, shared, config.head_dim)
                output = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
                outputs.append(output.reshape(len(query), -1))
            else:
                query = query.view(-1, config.kv_heads, shared, config.head_dim).permute(1, 2, 0, 3)
                output = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=mask is None)
                outputs.append(output.permute(2, 0, 1, 3).flatten(1))
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
            gathered = self._gathered[: width * (last - first)]
            views = {window: self._decoding_view(gathered, lengths, window) for window in self._windows}
            blocks = self._tensor(step.block_tables[first:last, :width].ravel())
            groups.append(_Group(slice(first, last), last - first, blocks, gathered, views))
            first = last
        return groups

    def _decoding_view(self, gathered: torch.Tensor, lengths: Int32s, window: int | None) -> _View:
        keys, values = self._keys_values(gathered, len(lengths))
        if len(lengths) == 1:
            # No mask: with one, attention alone takes half as long again.
            length = int(lengths[0])
            seen = slice(0 if window is None else max(0, length - window), length)
            return _View(keys[:, :, seen], values[:, :, seen], None)
        places = np.arange(keys.shape[2])
        hidden = places >= lengths[:, None]
        if window is not None:
            hidden |= places < lengths[:, None] - window
        return _View(keys, values, self._mask(hidden[:, None, None, :]))

    def _prompt_group(self, step: StepInput, row: int, offset: int) -> _Group:
        new, length = int(step.query_lengths[row]), int(step.context_lengths[row])
        width = -(-length // self._block_size)
        gathered = self._gathered[:width]
        keys, values = (part[:, :, :length] for part in self._keys_values(gathered, 1))
        if new > 1:
            shape = (-1, self._config.heads // self._config.kv_heads, -1, -1)
            keys, values = (part[0].unsqueeze(1).expand(shape) for part in (keys, values))
        views = {window: _View(keys, values, self._prompt_mask(new, length, window)) for window in self._windows}
        blocks = self._tensor(step.block_tables[row, :width])
        return _Group(slice(offset, offset + new), 1, blocks, gathered, views)

    def _keys_values(self, gathered: torch.Tensor, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Each (sequences, kv heads, tokens, head dim)."""
        keys, values = gathered.view(sequences, -1, 2, self._config.kv_heads, self._config.head_dim).unbind(2)
        return keys.transpose(1, 2), values.transpose(1, 2)

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
