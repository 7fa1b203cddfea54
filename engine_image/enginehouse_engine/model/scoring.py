"""Log probabilities of tokens that are known already, those of a prompt: from logits, a slice of rows at a time.

Invariant: never more than :data:`SLICE_ROWS` rows of logits at once, however long the prompt: so much the profile run has measured.
Does not choose tokens (``sampler.py``) and does not know requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from enginehouse_engine.executor.contract import Int32s, ScoringInput, ScoringOutput

SLICE_ROWS: Final = 64
"""Enough that the head's product is bound by computing and not by reading its weights."""


def score(scoring: ScoringInput, logits_at: Callable[[Int32s], torch.Tensor | None]) -> ScoringOutput | None:
    """``logits_at`` gives float32 logits (n, vocabulary) of n rows; None in a worker that only takes part in computing them."""
    slices = [
        _score_slice(logits, scoring.followers[begin : begin + SLICE_ROWS], scoring.alternatives)
        for begin in range(0, len(scoring.rows), SLICE_ROWS)
        if (logits := logits_at(scoring.rows[begin : begin + SLICE_ROWS])) is not None
    ]
    if not slices:
        return None
    return ScoringOutput(
        logprobs=np.concatenate([each.logprobs for each in slices]),
        top_tokens=np.concatenate([each.top_tokens for each in slices]),
        top_logprobs=np.concatenate([each.top_logprobs for each in slices]),
    )


def _score_slice(logits: torch.Tensor, followers: Int32s, alternatives: int) -> ScoringOutput:
    logprobs = torch.log_softmax(logits, dim=-1)
    wanted = torch.from_numpy(followers.astype(np.int64)).to(logits.device)
    top = logprobs.topk(min(alternatives, logprobs.shape[1]), dim=-1)
    return ScoringOutput(
        logprobs=logprobs.gather(1, wanted[:, None])[:, 0].cpu().numpy(),
        top_tokens=top.indices.to(torch.int32).cpu().numpy(),
        top_logprobs=top.values.cpu().numpy(),
    )
