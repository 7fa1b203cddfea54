"""The decoder family (Llama, Mistral, Qwen2, Qwen3 and what shares their shapes): forward pass of one step.

Invariant: equals the Hugging Face model of the same weights, whatever the step's mixture of prompts and single tokens, and
however the model is split: over the positions of a stage each product is split by rows of its weight, the next one by columns, so
that one sum over the positions ends a pair of them (Shoeybi et al., "Megatron-LM", 2019, section 3).
Query, key and value projections are one matrix, as are gate and up: fewer, larger products.
Does not sample (``sampler.py``) and does not own the KV cache (``attention.py``).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional

from enginehouse_engine.model.attention import PagedAttention, StepGeometry
from enginehouse_engine.model.linear import Linear
from enginehouse_engine.model.model_config import Rope
from enginehouse_engine.model.parallel import SOLO, Parallel
from enginehouse_engine.model.position import share_of
from enginehouse_engine.model.share_reader import ShareReader
from enginehouse_engine.model.vocabulary import read_ends
from enginehouse_engine.model.weights import WeightSource


class Decoder:
    """One position's share of a loaded model, on one device."""

    def __init__(
        self, source: WeightSource, *, dtype: torch.dtype, device: torch.device, threads: int, parallel: Parallel = SOLO
    ) -> None:
        """Load the share's weights, ``threads`` layers at a time.

        Raises ConfigError when a weight is missing or has another shape, or the model cannot be split so.
        """
        self.share = share_of(source.config, parallel.position)
        self.config = self.share.model
        self._parallel = parallel
        self._dtype = dtype
        self._device = device
        reader = ShareReader(source, self.share, dtype, device)
        with ThreadPoolExecutor(threads) as pool:
            # The largest tensors first, so that no thread is left with them alone at the end.
            ends = pool.submit(read_ends, reader, parallel)
            self._layers = list(pool.map(lambda index: _Layer(reader, index, parallel), self.share.layers))
            self._embedding, self._head = ends.result()
        self._frequencies = rope_frequencies(self.config.rope, self.config.head_dim).to(device)

    def forward(
        self,
        tokens: torch.Tensor,
        geometry: StepGeometry,
        attention: PagedAttention,
        *,
        depth: int | None = None,
    ) -> torch.Tensor | None:
        """Hidden states (T, hidden size) of the tokens (T,), in the last stage; None in the others.

        ``depth`` = only so many layers of each stage.
        """
        angles = geometry.positions.to(torch.float32)[:, None] * self._frequencies
        cosines, sines = angles.cos().to(self._dtype)[:, None], angles.sin().to(self._dtype)[:, None]
        if self._embedding is not None:
            hidden = self._embedding(tokens)
        else:
            shape = (len(tokens), self.config.hidden_size)
            hidden = self._parallel.receive(torch.empty(shape, dtype=self._dtype, device=self._device))
        for index, layer in enumerate(self._layers[:depth]):
            hidden = layer(index, hidden, cosines, sines, geometry, attention)
        if self._head is None:
            self._parallel.send(hidden)
            return None
        return hidden

    def logits(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
        """Float32 logits (N, vocabulary) of ``rows`` (N,) of what :meth:`forward` returned, for the position that chooses.

        Only in the last stage, all of whose positions take part; None in those that do not choose.
        """
        assert self._head is not None
        return self._head(hidden[rows])


class _Layer:
    def __init__(self, reader: ShareReader, index: int, parallel: Parallel) -> None:
        whole, share, config = reader.whole, reader.share, reader.share.model
        name = f"model.layers.{index}."
        queries, keys_values = (_dimensions(heads, config.head_dim) for heads in (share.heads, share.kv_heads))
        all_queries, all_keys_values = whole.heads * whole.head_dim, whole.kv_heads * whole.head_dim
        hidden, wide = whole.hidden_size, whole.intermediate_size
        self._config = config
        self._parallel = parallel
        # What is added once to a sum over positions, the first position adds.
        self._leads = parallel.position.tensor_index == 0
        self._input_norm = reader.vector(name + "input_layernorm.weight", hidden)
        self._middle_norm = reader.vector(name + "post_attention_layernorm.weight", hidden)
        attention, mlp = name + "self_attn.", name + "mlp."
        self._qkv = reader.by_rows(
            [
                (attention + "q_proj", all_queries, queries),
                (attention + "k_proj", all_keys_values, keys_values),
                (attention + "v_proj", all_keys_values, keys_values),
            ],
            hidden,
        )
        self._output = reader.by_columns(attention + "o_proj", hidden, all_queries, queries, with_bias=self._leads)
        self._gate_up = reader.by_rows(
            [(mlp + "gate_proj", wide, share.intermediate), (mlp + "up_proj", wide, share.intermediate)], hidden
        )
        self._down = reader.by_columns(mlp + "down_proj", hidden, wide, share.intermediate, with_bias=self._leads)
        if config.normalizes_heads:
            self._query_norm = reader.vector(attention + "q_norm.weight", config.head_dim)
            self._key_norm = reader.vector(attention + "k_norm.weight", config.head_dim)

    def __call__(
        self,
        index: int,
        hidden: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        geometry: StepGeometry,
        attention: PagedAttention,
    ) -> torch.Tensor:
        config = self._config
        normed = functional.rms_norm(hidden, (config.hidden_size,), self._input_norm, config.norm_epsilon)
        heads = self._qkv(normed).view(len(hidden), config.heads + 2 * config.kv_heads, config.head_dim)
        rotated = heads[:, : config.heads + config.kv_heads]
        if config.normalizes_heads:
            queries, keys = rotated[:, : config.heads], rotated[:, config.heads :]
            queries.copy_(functional.rms_norm(queries, (config.head_dim,), self._query_norm, config.norm_epsilon))
            keys.copy_(functional.rms_norm(keys, (config.head_dim,), self._key_norm, config.norm_epsilon))
        _rotate(rotated, cosines, sines)
        keys_values = heads[:, config.heads :].flatten(1)
        attention.write(index, keys_values, geometry)
        seen = attention.attend(index, heads[:, : config.heads], keys_values, geometry)
        hidden = self._add(self._output, seen, hidden)
        normed = functional.rms_norm(hidden, (config.hidden_size,), self._middle_norm, config.norm_epsilon)
        gate, up = self._gate_up(normed).chunk(2, dim=1)
        return self._add(self._down, functional.silu(gate).mul_(up), hidden)

    def _add(self, linear: Linear, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` and the product, whose summands are spread over the stage's positions."""
        return self._parallel.all_reduce(linear.plus(x, hidden) if self._leads else linear(x))


def _dimensions(heads: range, head_dim: int) -> range:
    return range(heads.start * head_dim, heads.stop * head_dim)


def _rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> None:
    """Rotate (T, heads, head dim) in place: the first half of a head is paired with the second."""
    first, second = heads.chunk(2, dim=-1)
    crossed = first * sines
    first.mul_(cosines).addcmul_(second, sines, value=-1)
    second.mul_(cosines).add_(crossed)


def rope_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Angle per position, (head dim / 2,), in float32: RoFormer section 3.2.2; ``llama3`` as in the Llama 3.1 reference code."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim)
    if rope.frequency_divisors:
        frequencies = frequencies / torch.tensor(rope.frequency_divisors)
    if rope.scaling == "linear":
        return frequencies / rope.factor
    if rope.scaling != "llama3":
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    longest = rope.original_max_length / rope.low_frequency_factor
    shortest = rope.original_max_length / rope.high_frequency_factor
    share = (rope.original_max_length / wavelengths - rope.low_frequency_factor) / (
        rope.high_frequency_factor - rope.low_frequency_factor
    )
    blended = (1 - share) * frequencies / rope.factor + share * frequencies
    slowed = torch.where(wavelengths > longest, frequencies / rope.factor, blended)
    return torch.where(wavelengths < shortest, frequencies, slowed)
