"""From the scheduler's plan to the flat arrays of a step.

Invariant: what a request gets depends on its own tokens, seed and settings only: the randomness of its i-th token is a function
of (seed, i), so neither the batch around it nor a preemption changes its answer.
Does not decide anything and does not import torch.
"""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from enginehouse_engine.core.kv_cache import RESERVED_BLOCK
from enginehouse_engine.core.scheduler import Scheduled
from enginehouse_engine.core.sequence import Sequence
from enginehouse_engine.executor.contract import SamplingInput, ScoringInput, StepInput
from enginehouse_engine.protocol import Sampling


def build_step(scheduled: list[Scheduled], *, end_token_ids: tuple[int, ...]) -> tuple[StepInput, list[Scheduled]]:
    """The step's arrays, and its parts in their order: those that choose first, single tokens before prompts.

    Single tokens are ordered by the length of their context, so that neighbours computed together pad each other little.
    """
    choosing = sorted((part for part in scheduled if part.samples), key=lambda part: (part.count > 1, part.start))
    parts = choosing + [part for part in scheduled if not part.samples]
    tokens = array("i")
    for part in parts:
        tokens += part.sequence.tokens[part.start : part.start + part.count]
    ends = [part.start + part.count for part in parts]
    tables = np.full((len(parts), max(len(part.sequence.blocks) for part in parts)), RESERVED_BLOCK, np.int32)
    for row, part in enumerate(parts):
        tables[row, : len(part.sequence.blocks)] = part.sequence.blocks
    step = StepInput(
        tokens=np.array(tokens, np.int32),
        query_lengths=np.array([part.count for part in parts], np.int32),
        context_lengths=np.array(ends, np.int32),
        block_tables=tables,
        choosing=len(choosing),
        sampling=_sampling_input([part.sequence for part in choosing], end_token_ids),
        scoring=_scoring_input(parts),
    )
    return step, parts


def due_positions(part: Scheduled) -> range:
    """Positions of a prompt that this part of a step scores; most requests want none."""
    scores = part.sequence.prompt_scores
    return range(0) if scores is None else scores.due(part.start, part.count)


def uniforms(seeds: NDArray[np.uint64], indices: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, index): SplitMix64, as in Steele, Lea, Flood, "Fast splittable PRNGs", 2014."""
    mixed = seeds + (indices + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.asarray(mixed >> np.uint64(11), np.float64) / 2.0**53


def _is_plain(sequence: Sequence) -> bool:
    """Greedy and nothing that touches logits or wants to see them."""
    sampling = sequence.sampling
    return (
        sampling.temperature == 0
        and sampling.logprobs is None
        and not sampling.logit_bias
        and not _has_penalty(sampling)
        and sequence.generated >= sampling.min_tokens
    )


def _has_penalty(sampling: Sampling) -> bool:
    return sampling.presence_penalty != 0 or sampling.frequency_penalty != 0 or sampling.repetition_penalty != 1


def _scoring_input(parts: list[Scheduled]) -> ScoringInput | None:
    if all(part.sequence.prompt_scores is None for part in parts):
        return None
    rows: list[NDArray[np.int32]] = []
    followers = array("i")
    alternatives = 0
    offset = 0
    for part in parts:
        scores, due = part.sequence.prompt_scores, due_positions(part)
        if scores is not None and due:
            rows.append(np.arange(due.start, due.stop, dtype=np.int32) + (offset - part.start))
            followers += part.sequence.tokens[due.start + 1 : due.stop + 1]
            alternatives = max(alternatives, scores.alternatives)
        offset += part.count
    if not rows:
        return None
    return ScoringInput(
        rows=np.concatenate(rows).astype(np.int32, copy=False),
        followers=np.array(followers, np.int32),
        alternatives=alternatives,
    )


def _sampling_input(sequences: list[Sequence], end_token_ids: tuple[int, ...]) -> SamplingInput | None:
    if all(_is_plain(sequence) for sequence in sequences):
        return None
    settings = [sequence.sampling for sequence in sequences]
    history_rows: list[NDArray[np.int32]] = []
    history_tokens = array("i")
    history_generated: list[NDArray[np.bool_]] = []
    biases: list[tuple[int, int, float]] = []
    for row, sequence in enumerate(sequences):
        if _has_penalty(sequence.sampling):
            length = len(sequence.tokens)
            history_rows.append(np.full(length, row, np.int32))
            history_tokens += sequence.tokens
            history_generated.append(np.arange(length) >= sequence.prompt_length)
        biases += [(row, token, value) for token, value in sequence.sampling.logit_bias.items()]
        if sequence.generated < sequence.sampling.min_tokens:
            forbidden = {*end_token_ids, *sequence.sampling.stop_token_ids}
            biases += [(row, token, -np.inf) for token in sorted(forbidden)]
    seeds = np.array([sequence.seed for sequence in sequences], np.uint64)
    indices = np.array([sequence.generated for sequence in sequences], np.uint64)
    return SamplingInput(
        temperature=np.array([each.temperature for each in settings], np.float32),
        top_k=np.array([each.top_k for each in settings], np.int32),
        top_p=np.array([each.top_p for each in settings], np.float32),
        min_p=np.array([each.min_p for each in settings], np.float32),
        uniform=uniforms(seeds, indices),
        presence_penalty=np.array([each.presence_penalty for each in settings], np.float32),
        frequency_penalty=np.array([each.frequency_penalty for each in settings], np.float32),
        repetition_penalty=np.array([each.repetition_penalty for each in settings], np.float32),
        history_rows=np.concatenate(history_rows) if history_rows else np.zeros(0, np.int32),
        history_tokens=np.array(history_tokens, np.int32),
        history_generated=np.concatenate(history_generated) if history_generated else np.zeros(0, np.bool_),
        bias_rows=np.array([bias[0] for bias in biases], np.int32),
        bias_tokens=np.array([bias[1] for bias in biases], np.int32),
        bias_values=np.array([bias[2] for bias in biases], np.float32),
        logprobs=max(-1 if each.logprobs is None else each.logprobs for each in settings),
    )
