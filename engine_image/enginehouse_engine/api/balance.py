"""Which rank gets a request: by what each has to do, and by where the beginning of its prompt was computed before.

Invariant: nobody who is busier than the least busy by more than ``MARGIN`` is chosen, so that a popular prefix cannot pile up work.
What a rank holds is guessed from what was sent to it: a wrong guess costs a computation, never a wrong answer. Pure: no sockets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enginehouse_engine.protocol import TOKEN_BYTES

MARGIN: Final = 4
"""Sequences. A step computes one token of each, so a few more cost little beside a prompt that need not be computed again."""
MOST_BLOCKS: Final = 32_768
"""Remembered of a rank: 128 bytes each, so at most 4 MiB."""
_MOST_HASHES: Final = 1024
"""Of a prompt. Who agrees with it so far will do: a longer one is not worth more time of the event loop than 0.5 ms."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rank that could take the request."""

    load: int
    """Sequences it has to do."""
    held: int
    """Blocks of the prompt's beginning that it was sent before."""
    last_chosen: int


def choose(candidates: Sequence[Candidate]) -> int:
    """The place of the one that holds most of the prompt, then has the least to do, then has waited longest."""
    least = min(candidate.load for candidate in candidates)
    near = [place for place, candidate in enumerate(candidates) if candidate.load <= least + MARGIN]
    return min(near, key=lambda place: (-candidates[place].held, candidates[place].load, candidates[place].last_chosen))


def block_hashes(prompt: bytes, *, block_size: int) -> list[int]:
    """One for each full block of a packed prompt's beginning; equal for equal prompts up to there, in this process alone."""
    size = block_size * TOKEN_BYTES
    blocks = min(len(prompt) // size, _MOST_HASHES)
    hashes: list[int] = []
    so_far = 0
    for start in range(0, blocks * size, size):
        so_far = hash((so_far, prompt[start : start + size]))
        hashes.append(so_far)
    return hashes


class SentBlocks:
    """The blocks that one rank was sent, as far as its cache can still hold them."""

    def __init__(self, most: int) -> None:
        self._most = min(most, MOST_BLOCKS)
        self._hashes: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hashes)

    def held(self, hashes: Sequence[int]) -> int:
        """How many blocks of this beginning it was sent."""
        return next((place for place, known in enumerate(hashes) if known not in self._hashes), len(hashes))

    def add(self, hashes: Sequence[int]) -> None:
        """It was sent these. Ends are forgotten before beginnings, as in the rank's own cache."""
        for known in reversed(hashes):
            self._hashes[known] = None
            self._hashes.move_to_end(known)
        while len(self._hashes) > self._most:
            self._hashes.popitem(last=False)
