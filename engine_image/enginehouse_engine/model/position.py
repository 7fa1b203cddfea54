"""Where one worker stands in its rank, and which part of the model it therefore keeps. Pure.

Invariant: the positions of a rank together hold every layer, head and intermediate dimension; each computes the same number of
heads. Only a key head with more positions than one to serve is kept more than once.
Does not know how positions talk to each other (``parallel.py``) and does not read weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from enginehouse_engine.config import ConfigError
from enginehouse_engine.core.context_fit import kv_block_bytes
from enginehouse_engine.model.model_config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A worker's place: which share of every layer (tensor), and which layers (pipeline)."""

    tensor_index: int = 0
    tensor_size: int = 1
    pipeline_index: int = 0
    pipeline_size: int = 1

    @classmethod
    def of(cls, index: int, *, tensor_size: int, pipeline_size: int) -> Position:
        """The position of a rank's ``index``-th worker."""
        pipeline_index, tensor_index = divmod(index, tensor_size)
        return cls(tensor_index=tensor_index, tensor_size=tensor_size, pipeline_index=pipeline_index, pipeline_size=pipeline_size)

    @property
    def index(self) -> int:
        """Of the worker in its rank."""
        return self.pipeline_index * self.tensor_size + self.tensor_index

    @property
    def workers(self) -> int:
        """Of the rank."""
        return self.tensor_size * self.pipeline_size

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_index == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_index == self.pipeline_size - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one position keeps of a model; ranges count in the whole model."""

    model: ModelConfig
    """As this position sees it: its own layers, heads, key heads and intermediate dimensions."""
    layers: range
    heads: range
    kv_heads: range
    intermediate: range
    vocabulary: range
    """Rows of embedding and head. The last positions' may end beyond the vocabulary: all are equally long."""

    def kv_block_bytes(self, *, block_size: int, element_bytes: int) -> int:
        """Of one KV block of this position: its own layers and key heads."""
        return kv_block_bytes(
            layers=self.model.layers,
            kv_heads=self.model.kv_heads,
            head_dim=self.model.head_dim,
            block_size=block_size,
            element_bytes=element_bytes,
        )


def share_of(model: ModelConfig, position: Position) -> Share:
    """The part that ``position`` keeps. Raises ConfigError when the model cannot be split so."""
    tensor, stages = position.tensor_size, position.pipeline_size
    if not _can_split(model, tensor):
        possible = ", ".join(str(size) for size in range(1, model.heads + 1) if _can_split(model, size))
        raise ConfigError(
            f"tensor parallelism {tensor} cannot split {model.heads} query heads and {model.kv_heads} key heads evenly: set "
            f"parallelism.tensor to one of {possible}"
        )
    if stages > model.layers:
        raise ConfigError(
            f"pipeline parallelism {stages} asks for more stages than the model has layers: set parallelism.pipeline to "
            f"{model.layers} at most"
        )
    layers = _part(model.layers, position.pipeline_index, stages)
    heads = _part(model.heads, position.tensor_index, tensor)
    per_kv_head = model.heads // model.kv_heads
    kv_heads = range(heads.start // per_kv_head, (heads.stop - 1) // per_kv_head + 1)
    intermediate = _part(model.intermediate_size, position.tensor_index, tensor)
    rows = -(-model.vocabulary_size // tensor)
    return Share(
        model=replace(
            model,
            layers=len(layers),
            windows=model.windows[layers.start : layers.stop],
            heads=len(heads),
            kv_heads=len(kv_heads),
            intermediate_size=len(intermediate),
        ),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=intermediate,
        vocabulary=range(position.tensor_index * rows, (position.tensor_index + 1) * rows),
    )


def _can_split(model: ModelConfig, tensor: int) -> bool:
    even = model.heads % tensor == 0 and (model.kv_heads % tensor == 0 or tensor % model.kv_heads == 0)
    return even and tensor <= model.intermediate_size


def _part(count: int, index: int, parts: int) -> range:
    """One of ``parts`` neighbouring ranges whose lengths differ by one at most, the longer ones first."""
    return range(-(-index * count // parts), -(-(index + 1) * count // parts))
