"""Which tokens of which sequences are computed in the next step, and in which blocks their keys and values go.

Continuous batching, first come first served: sequences that choose a token each step go first, then prompts in chunks, then
new sequences, within the token budget of a step. When blocks run out the youngest sequence gives its blocks back and is computed
again later.
Invariants: every running sequence is older than every waiting one, so the oldest always advances and every request ends; blocks
for all known tokens are taken on admission, so only the growth of the youngest can be in the way of others.
Does not choose tokens, know of time, or import anything but the pool.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from enginehouse_engine.core.kv_cache import BlockPool, extend_hashes
from enginehouse_engine.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Compute ``count`` tokens of a sequence, from position ``start`` on."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the end of the known tokens, so that the next one is chosen."""
        return self.start + self.count == len(self.sequence.tokens)


class Scheduler:
    """The waiting and the running sequences of one rank."""

    def __init__(self, pool: BlockPool, *, block_size: int, max_batch: int, max_step_tokens: int) -> None:
        if min(block_size, max_batch, max_step_tokens) < 1:
            raise ValueError(f"sizes are at least 1, found {block_size=}, {max_batch=}, {max_step_tokens=}")
        self._pool = pool
        self._block_size = block_size
        self._max_batch = max_batch
        self._max_step_tokens = max_step_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.preemptions = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue it behind all others. Its prompt and answer together must fit in the pool: the caller has checked."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It has ended or was aborted, between two steps: its blocks are free from now on."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release(sequence)

    def plan(self) -> list[Scheduled]:
        """Decide the next step and take the blocks for it. Empty only when there are no sequences."""
        budget = self._max_step_tokens
        scheduled: list[Scheduled] = []
        preempted_before = self.preemptions
        index = 0
        while index < len(self._running) and budget > 0:
            sequence = self._running[index]
            index += 1
            if sequence.remaining == 1 and self._grow(sequence):
                scheduled.append(Scheduled(sequence, sequence.computed, 1))
                budget -= 1
        for sequence in self._running:
            if sequence.remaining > 1 and budget > 0:
                budget -= self._take(sequence, budget, scheduled)
        while self._waiting and budget > 0 and self.preemptions == preempted_before and self._admit(self._waiting[0]):
            budget -= self._take(self._waiting.popleft(), budget, scheduled)
        return scheduled

    def commit(self, scheduled: list[Scheduled]) -> None:
        """The step has been computed: full blocks become findable for other requests. Call before tokens are appended."""
        for part in scheduled:
            sequence = part.sequence
            sequence.computed = part.start + part.count
            full = sequence.computed // self._block_size
            if full > sequence.published:
                extend_hashes(sequence.hashes, sequence.tokens, block_size=self._block_size)
                for index in range(sequence.published, full):
                    self._pool.publish(sequence.blocks[index], sequence.hashes[index])
                sequence.published = full

    def _take(self, sequence: Sequence, budget: int, scheduled: list[Scheduled]) -> int:
        count = min(sequence.remaining, budget)
        scheduled.append(Scheduled(sequence, sequence.computed, count))
        return count

    def _blocks_for(self, sequence: Sequence) -> int:
        return -(-len(sequence.tokens) // self._block_size)

    def _grow(self, sequence: Sequence) -> bool:
        """A block for the newest token, at the expense of the youngest; False when that is the sequence itself."""
        if self._blocks_for(sequence) == len(sequence.blocks):
            return True
        while self._pool.free_blocks == 0:
            victim = self._running.pop()
            self._release(victim)
            self._waiting.appendleft(victim)
            self.preemptions += 1
            if victim is sequence:
                return False
        sequence.blocks += self._pool.allocate(1)
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Start a waiting sequence if there is room for all its tokens and, to avoid thrashing, for one block of everybody else."""
        if len(self._running) == self._max_batch:
            return False
        extend_hashes(sequence.hashes, sequence.tokens, block_size=self._block_size)
        # The last token is always computed: its logits choose the next one.
        known = len(sequence.tokens) - 1
        if sequence.prompt_scores is not None:
            known = sequence.prompt_scores.reusable(known)
        reusable = known // self._block_size
        reused = self._pool.match(sequence.hashes[:reusable])
        fresh = self._blocks_for(sequence) - len(reused)
        revived = sum(self._pool.references(block) == 0 for block in reused)
        if fresh + revived + len(self._running) > self._pool.free_blocks:
            return False
        self._pool.share(reused)
        sequence.blocks = reused + self._pool.allocate(fresh)
        sequence.computed = len(reused) * self._block_size
        sequence.published = len(reused)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        self._running.append(sequence)
        return True

    def _release(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0
        sequence.published = 0
