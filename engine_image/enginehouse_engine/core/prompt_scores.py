"""The log probabilities of one prompt, from the steps that compute it to the request's first output.

Invariant: each position is scored exactly once, in rising order, whatever the chunks: one that was scored before a preemption is
not scored again, though it is computed again. Does not compute anything (``model/scoring.py``).
"""

from __future__ import annotations

from enginehouse_engine.protocol import TOKEN_BYTES, PromptLogprobs


class PromptScores:
    """Of a prompt of ``length`` tokens, with ``alternatives`` for each: position i says how likely token i + 1 was."""

    def __init__(self, length: int, *, alternatives: int) -> None:
        self.alternatives = alternatives
        self._wanted = length - 1
        self._scored = 0
        self._parts: list[PromptLogprobs] = []

    def reusable(self, known: int) -> int:
        """How many of ``known`` computed tokens need not be computed again: those whose scores are there."""
        return known if self._scored == self._wanted else min(known, self._scored)

    def due(self, start: int, count: int) -> range:
        """Which of the positions that a step computes it has to score."""
        return range(max(start, self._scored), min(start + count, self._wanted))

    def add(self, part: PromptLogprobs) -> None:
        """The scores of the positions that were due in a step."""
        self._parts.append(part)
        self._scored += len(part.logprobs) // TOKEN_BYTES

    def message(self) -> PromptLogprobs:
        """All of them, once the prompt is computed."""
        if self._scored != self._wanted:
            raise RuntimeError(f"{self._wanted} positions of a prompt were to be scored, {self._scored} were")
        return PromptLogprobs(
            logprobs=b"".join(part.logprobs for part in self._parts),
            # A small vocabulary has fewer than were asked for.
            alternatives=max((part.alternatives for part in self._parts), default=0),
            top_tokens=b"".join(part.top_tokens for part in self._parts),
            top_logprobs=b"".join(part.top_logprobs for part in self._parts),
        )
