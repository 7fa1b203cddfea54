"""One request inside the engine core: its tokens, how far they are computed, and the blocks that hold the result.

Invariant: ``blocks`` covers at least ``computed`` tokens; ``hashes`` holds one entry per full block at most.
Does not decide anything: ``scheduler.py`` moves it on, ``engine_core.py`` says when it ends.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from enginehouse_engine.core.prompt_scores import PromptScores
from enginehouse_engine.protocol import Sampling


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Mutable, owned by the scheduler from ``add`` to ``remove``; compared by identity."""

    front_end: int
    request_id: str
    tokens: array[int]
    """Prompt, then everything generated so far: int32, since prompts wait in numbers that no budget holds as lists."""
    prompt_length: int
    sampling: Sampling
    seed: int
    """0 <= seed < 2**64."""
    computed: int = 0
    """Tokens whose keys and values are in ``blocks``."""
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    published: int = 0
    """Blocks already findable by hash."""
    cached_tokens: int | None = None
    """Prompt tokens reused when it first ran; None before."""
    prompt_scores: PromptScores | None = None
    """Until the first output, if it wants to see log probabilities of its prompt."""

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length
