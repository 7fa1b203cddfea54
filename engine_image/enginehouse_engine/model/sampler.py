"""From logits to chosen tokens: penalties, biases, temperature, filters, and one given random number per row.

Invariant: a row's token depends on that row alone, so an answer with a seed repeats in any batch. The kept tokens are lined up by
falling probability (in vocabulary order where nothing is cut off) and the random number points into that line.
Does not draw random numbers and keeps nothing between steps.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from enginehouse_engine.executor.contract import SamplingInput, StepOutput

_FIRST_LOOK: Final = 1024
"""Most probable tokens sorted first: the cut nearly always lies among them, and sorting a whole vocabulary takes milliseconds."""


def sample(logits: torch.Tensor, sampling: SamplingInput | None) -> StepOutput:
    """Choose one token per row of ``logits`` (N, vocabulary, float32), which is changed in place."""
    if sampling is None:
        return StepOutput(tokens=_numpy(logits.argmax(dim=-1)))
    own = torch.log_softmax(logits, dim=-1) if sampling.logprobs >= 0 else None
    _apply_penalties(logits, sampling)
    _apply_biases(logits, sampling)
    tokens = logits.argmax(dim=-1)
    drawn = np.flatnonzero(sampling.temperature > 0)
    if len(drawn):
        rows = torch.from_numpy(drawn).to(logits.device)
        tokens[rows] = _draw(logits[rows], sampling, drawn)
    if own is None:
        return StepOutput(tokens=_numpy(tokens))
    top = own.topk(min(sampling.logprobs, own.shape[1]), dim=-1)
    return StepOutput(
        tokens=_numpy(tokens),
        logprobs=own.gather(1, tokens[:, None])[:, 0].cpu().numpy(),
        top_tokens=_numpy(top.indices),
        top_logprobs=top.values.cpu().numpy(),
    )


def _apply_penalties(logits: torch.Tensor, sampling: SamplingInput) -> None:
    """Presence and frequency count generated tokens (OpenAI); repetition counts the prompt too (CTRL, section 4.1)."""
    if not len(sampling.history_rows):
        return
    device = logits.device
    touched, rows = np.unique(sampling.history_rows, return_inverse=True)
    tokens = torch.from_numpy(sampling.history_tokens).to(device, torch.int64)
    generated = torch.from_numpy(sampling.history_generated).to(device)
    places = torch.from_numpy(rows).to(device) * logits.shape[1] + tokens
    shape = (len(touched), logits.shape[1])
    seen = torch.zeros(shape, dtype=torch.bool, device=device)
    seen.view(-1)[places] = True
    counts = torch.zeros(shape, device=device)
    counts.view(-1).scatter_add_(0, places, generated.to(torch.float32))

    def column(values: np.typing.NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(values[touched]).to(device)[:, None]

    index = torch.from_numpy(touched).to(device, torch.int64)
    picked = logits[index]
    repetition = column(sampling.repetition_penalty)
    picked = torch.where(seen, torch.where(picked > 0, picked / repetition, picked * repetition), picked)
    picked -= counts * column(sampling.frequency_penalty)
    picked -= (counts > 0) * column(sampling.presence_penalty)
    logits[index] = picked


def _apply_biases(logits: torch.Tensor, sampling: SamplingInput) -> None:
    if not len(sampling.bias_rows):
        return
    rows = torch.from_numpy(sampling.bias_rows).to(logits.device, torch.int64)
    tokens = torch.from_numpy(sampling.bias_tokens).to(logits.device, torch.int64)
    logits.index_put_((rows, tokens), torch.from_numpy(sampling.bias_values).to(logits.device), accumulate=True)


def _draw(logits: torch.Tensor, sampling: SamplingInput, rows: np.typing.NDArray[np.int64]) -> torch.Tensor:
    device = logits.device
    temperature = torch.from_numpy(sampling.temperature[rows]).to(device)[:, None]
    # Relative to the best, so that a temperature next to zero makes minus infinities and not infinities, which have no softmax.
    probabilities = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / temperature, dim=-1)
    uniform = torch.from_numpy(sampling.uniform[rows]).to(device)
    top_k, top_p = sampling.top_k[rows], sampling.top_p[rows]
    min_p = torch.from_numpy(sampling.min_p[rows]).to(device)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=device)
    cut = (top_k > 0) | (top_p < 1)
    if not cut.all():
        whole = torch.from_numpy(np.flatnonzero(~cut)).to(device)
        kept = probabilities[whole]
        kept = kept.masked_fill_(kept < kept.amax(dim=-1, keepdim=True) * min_p[whole, None], 0)
        tokens[whole] = _pick(kept, uniform[whole])
    for row in np.flatnonzero(cut):
        tokens[row] = _draw_cut(probabilities[row], uniform[row], int(top_k[row]), float(top_p[row]), min_p[row])
    return tokens


def _draw_cut(probabilities: torch.Tensor, uniform: torch.Tensor, top_k: int, top_p: float, min_p: torch.Tensor) -> torch.Tensor:
    """One row: the ``top_k`` best, of these the fewest that hold ``top_p``, of these those above ``min_p`` times the best."""
    size = len(probabilities)
    most = min(top_k, size) if top_k else size
    look = min(most, _FIRST_LOOK)
    kept, tokens = probabilities.topk(look)
    total = kept.sum() if look == most else probabilities.sum()
    if look < most and (top_k or kept.sum() < top_p * total):
        kept, tokens = probabilities.topk(most)
        total = kept.sum()
    before = kept.cumsum(0, dtype=torch.float64) - kept
    dropped = (before >= top_p * total) | (kept < kept[0] * min_p)
    dropped[0] = False
    kept = kept.masked_fill(dropped, 0)
    return tokens[_pick(kept[None], uniform[None])[0]]


def _pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The place in each row of ``weights`` (N, V) that ``uniform`` (N,) points at, in proportion to the weights."""
    line = weights.cumsum(dim=-1, dtype=torch.float64)
    targets = uniform[:, None] * line[:, -1:]
    return torch.searchsorted(line, targets, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)


def _numpy(tokens: torch.Tensor) -> np.typing.NDArray[np.int32]:
    return tokens.to(torch.int32).cpu().numpy()
