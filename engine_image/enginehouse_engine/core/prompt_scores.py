"""The log probabilities of one prompt, from the steps that compute it to the request's first output.

Invariant: each position is scored exactly once, in rising order, whatever the chunks: one that was scored before a preemption is
not scored again, though it is computed again. Does not compute anything (``model/scoring.py``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginehouse_engine.executor.contract import ScoringOutput
from enginehouse_engine.protocol import PromptLogprobs


class PromptScores:
    """Of a prompt of ``length`` tokens, with ``alternatives`` for each: position i says how likely token i + 1 was."""

    def __init__(self, length: int, *, alternatives: int) -> None:
        self.alternatives = alternatives
        self._wanted = length - 1
        self._scored = 0
        self._parts: list[ScoringOutput] = []

    def reusable(self, known: int) -> int:
        """How many of ``known`` computed tokens need not be computed again: those whose scores are there."""
        return known if self._scored == self._wanted else min(known, self._scored)

    def due(self, start: int, count: int) -> range:
        """Which of the positions that a step computes it has to score."""
        return range(max(start, self._scored), min(start + count, self._wanted))

    def add(self, step: ScoringOutput, rows: slice) -> None:
        """The scores of the positions that were due: ``rows`` of what the step said."""
        tops = slice(None, self.alternatives)
        # Copies: a part must not keep what the step says about others.
        part = ScoringOutput(
            logprobs=step.logprobs[rows].copy(),
            top_tokens=step.top_tokens[rows, tops].copy(),
            top_logprobs=step.top_logprobs[rows, tops].copy(),
        )
        self._parts.append(part)
        self._scored += len(part.logprobs)

    def message(self) -> PromptLogprobs:
        """All of them, once the prompt is computed."""
        if self._scored != self._wanted:
            raise RuntimeError(f"{self._wanted} positions of a prompt were to be scored, {self._scored} were")
        if not self._parts:
            return PromptLogprobs(b"")
        top_tokens = [part.top_tokens for part in self._parts]
        return PromptLogprobs(
            logprobs=_packed([part.logprobs for part in self._parts], "<f4"),
            # A small vocabulary has fewer.
            alternatives=top_tokens[0].shape[1],
            top_tokens=_packed(top_tokens, "<i4"),
            top_logprobs=_packed([part.top_logprobs for part in self._parts], "<f4"),
        )


def _packed(parts: list[NDArray[np.int32]] | list[NDArray[np.float32]], dtype: str) -> bytes:
    return np.concatenate(parts).astype(dtype, copy=False).tobytes()
