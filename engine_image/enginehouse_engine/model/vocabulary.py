"""Both ends of a decoder: from tokens to hidden states, and from hidden states to logits.

Invariant: each position of a stage keeps an equal part of the vocabulary's rows; in a tied model of one stage both ends are the
same weights. Only the first stage embeds, only the last has logits.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from enginehouse_engine.model.linear import Linear
from enginehouse_engine.model.model_config import ModelConfig
from enginehouse_engine.model.norm import Norm
from enginehouse_engine.model.parallel import Parallel
from enginehouse_engine.model.share_reader import ShareReader


class Embedding:
    """From tokens (T,) to hidden states (T, hidden size)."""

    def __init__(self, weight: torch.Tensor, *, rows: range, parallel: Parallel) -> None:
        """``weight``: ``rows`` of the vocabulary."""
        self._weight = weight
        self._rows = rows
        self._parallel = parallel

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._parallel.position.tensor_size == 1:
            return functional.embedding(tokens, self._weight)
        own = tokens - self._rows.start
        foreign = (own < 0) | (own >= len(self._rows))
        hidden = functional.embedding(own.masked_fill_(foreign, 0), self._weight)
        return self._parallel.all_reduce(hidden.masked_fill_(foreign[:, None], 0))


class Head:
    """From the last layer's hidden states (N, hidden size) to float32 logits (N, vocabulary): first position; None in others."""

    def __init__(self, norm: Norm, linear: Linear, *, model: ModelConfig, parallel: Parallel) -> None:
        self._norm = norm
        self._linear = linear
        self._model = model
        self._parallel = parallel

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor | None:
        logits = self._parallel.gather(self._linear(self._norm(hidden)))
        return None if logits is None else logits[:, : self._model.vocabulary_size].to(torch.float32)


def read_ends(reader: ShareReader, parallel: Parallel) -> tuple[Embedding | None, Head | None]:
    """Those that this position's stage has."""
    model, rows, position = reader.whole, reader.share.vocabulary, parallel.position
    weight = None
    if position.is_first_stage or (position.is_last_stage and model.tied_embeddings):
        weight = reader.vocabulary_rows("model.embed_tokens.weight")
    embedding = head = None
    if weight is not None and position.is_first_stage:
        embedding = Embedding(weight, rows=rows, parallel=parallel)
    if position.is_last_stage:
        if weight is not None and model.tied_embeddings:
            linear = Linear(weight)
        else:
            linear = reader.by_rows([("lm_head", model.vocabulary_size, rows)], model.hidden_size)
        norm = Norm(reader.vector("model.norm.weight", model.hidden_size), epsilon=model.norm_epsilon)
        head = Head(norm, linear, model=model, parallel=parallel)
    return embedding, head
