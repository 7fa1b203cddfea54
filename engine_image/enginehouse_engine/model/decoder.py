"""The decoder family (Llama, Mistral, Qwen2, Qwen3 and what shares their shapes): forward pass of one step.

Invariant: equals the Hugging Face model of the same weights, whatever the step's mixture of prompts and single tokens.
Query, key and value projections are one matrix, as are gate and up: fewer, larger products.
Does not sample (``sampler.py``) and does not own the KV cache (``attention.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional

from enginehouse_engine.config import ConfigError
from enginehouse_engine.model.attention import PagedAttention, StepGeometry
from enginehouse_engine.model.linear import Linear
from enginehouse_engine.model.model_config import ModelConfig, Rope
from enginehouse_engine.model.weights import WeightSource


class Decoder:
    """A loaded model on one device."""

    def __init__(self, source: WeightSource, *, dtype: torch.dtype, device: torch.device, threads: int) -> None:
        """Load all weights, ``threads`` layers at a time. Raises ConfigError when one is missing or has another shape."""
        self.config = source.config
        reader = _Reader(source, dtype, device)
        with ThreadPoolExecutor(threads) as pool:
            # The largest tensors first, so that no thread is left with them alone at the end.
            embedding = pool.submit(_read_embedding, reader)
            layers = list(pool.map(lambda index: _Layer(reader, index), range(self.config.layers)))
            self._embedding, self._head = embedding.result()
        self._layers = layers
        self._norm = reader.vector("model.norm.weight", self.config.hidden_size)
        self._frequencies = rope_frequencies(self.config.rope, self.config.head_dim).to(device)
        self._dtype = dtype

    def forward(
        self,
        tokens: torch.Tensor,
        geometry: StepGeometry,
        attention: PagedAttention,
        *,
        depth: int | None = None,
    ) -> torch.Tensor:
        """Hidden states (T, hidden size) of the tokens (T,); ``depth`` = only so many layers."""
        angles = geometry.positions.to(torch.float32)[:, None] * self._frequencies
        cosines, sines = angles.cos().to(self._dtype)[:, None], angles.sin().to(self._dtype)[:, None]
        hidden = functional.embedding(tokens, self._embedding)
        for index, layer in enumerate(self._layers[:depth]):
            hidden = layer(index, hidden, cosines, sines, geometry, attention)
        return hidden

    def logits(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Float32 logits (N, vocabulary) of the ``rows`` (N,) of :meth:`forward`'s hidden states."""
        normed = functional.rms_norm(hidden[rows], (self.config.hidden_size,), self._norm, self.config.norm_epsilon)
        return self._head(normed).to(torch.float32)


class _Layer:
    def __init__(self, reader: _Reader, index: int) -> None:
        config = reader.config
        name = f"model.layers.{index}."
        queries, keys_values = config.heads * config.head_dim, config.kv_heads * config.head_dim
        hidden, wide = config.hidden_size, config.intermediate_size
        self._config = config
        self._input_norm = reader.vector(name + "input_layernorm.weight", hidden)
        self._middle_norm = reader.vector(name + "post_attention_layernorm.weight", hidden)
        attention, mlp = name + "self_attn.", name + "mlp."
        projections = [(attention + "q_proj", queries), (attention + "k_proj", keys_values), (attention + "v_proj", keys_values)]
        self._qkv = reader.linear(projections, hidden)
        self._output = reader.linear([(attention + "o_proj", hidden)], queries)
        self._gate_up = reader.linear([(mlp + "gate_proj", wide), (mlp + "up_proj", wide)], hidden)
        self._down = reader.linear([(mlp + "down_proj", hidden)], wide)
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
        hidden = self._output.plus(seen, hidden)
        normed = functional.rms_norm(hidden, (config.hidden_size,), self._middle_norm, config.norm_epsilon)
        gate, up = self._gate_up(normed).chunk(2, dim=1)
        return self._down.plus(functional.silu(gate).mul_(up), hidden)


class _Reader:
    """Reads weights in the type and on the device they will have, and checks their shapes."""

    def __init__(self, source: WeightSource, dtype: torch.dtype, device: torch.device) -> None:
        self.config: ModelConfig = source.config
        self._source = source
        self._dtype = dtype
        self._device = device

    def vector(self, name: str, size: int) -> torch.Tensor:
        return self._read(name, (size,)).to(self._device)

    def matrix(self, name: str, rows: int, columns: int) -> torch.Tensor:
        return self._read(name, (rows, columns)).to(self._device)

    def linear(self, parts: Sequence[tuple[str, int]], columns: int) -> Linear:
        """One product for several weights with the same input, given with their rows."""
        weight = torch.cat([self._read(f"{name}.weight", (rows, columns)) for name, rows in parts])
        bias = None
        if any(self._source.has(f"{name}.bias") for name, _ in parts):
            bias = torch.cat([self._read(f"{name}.bias", (rows,)) for name, rows in parts]).to(self._device)
        return Linear(weight.to(self._device), bias)

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = self._source.read(name)
        if tensor.shape != shape:
            raise ConfigError(f"tensor {name} has the shape {tuple(tensor.shape)}, the model's configuration says {shape}")
        if not tensor.is_floating_point():
            raise ConfigError(f"tensor {name} holds {tensor.dtype}: quantized weights are read from GGUF files only")
        return tensor.to(self._dtype)


def _read_embedding(reader: _Reader) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    config = reader.config
    embedding = reader.matrix("model.embed_tokens.weight", config.vocabulary_size, config.hidden_size)
    if config.tied_embeddings:
        return embedding, Linear(embedding)
    return embedding, reader.linear([("lm_head", config.vocabulary_size)], config.hidden_size)


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
