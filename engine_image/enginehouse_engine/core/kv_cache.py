"""Who owns which KV block: reference counts, prefix hashes and the order in which free blocks lose their content.

Invariant: every block but the reserved one is either free (no owner) or used (one reference per owner), never both, so that
``free_blocks + used_blocks == usable_blocks`` at every moment. A free block keeps its content, findable by hash, until it is
handed out again: least recently freed first.
Does not hold tensors, and does not decide who gets blocks (``scheduler.py``).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

RESERVED_BLOCK: Final = 0
"""Padding in block tables points here: it is never handed out, and what is written to it is never read as content."""

_DIGEST_BYTES: Final = 16


class OutOfBlocks(Exception):
    """Fewer free blocks than asked for; nothing was handed out."""


def extend_hashes(hashes: list[bytes], tokens: array[int], *, block_size: int) -> None:
    """Append the hashes of all full blocks of ``tokens`` that ``hashes`` does not hold yet.

    Each hash covers its block's tokens and the hash before it, hence the whole prefix. It is cryptographic because prompts
    come from strangers: with a weak one somebody could read another request's keys and values by a forged collision.
    """
    for index in range(len(hashes), len(tokens) // block_size):
        digest = hashlib.blake2b(hashes[-1] if hashes else b"", digest_size=_DIGEST_BYTES)
        digest.update(tokens[index * block_size : (index + 1) * block_size])
        hashes.append(digest.digest())


class BlockPool:
    """The blocks of one rank, numbered 0 to ``total_blocks - 1``; number 0 is the reserved one."""

    def __init__(self, total_blocks: int) -> None:
        if total_blocks < 2:
            raise ValueError(f"a block pool holds the reserved block and at least one more, found {total_blocks}")
        self._references = [0] * total_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, total_blocks))

    @property
    def usable_blocks(self) -> int:
        return len(self._references) - 1

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        return self.usable_blocks - self.free_blocks

    def references(self, block: int) -> int:
        """How many owners a block has."""
        return self._references[block]

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks with one owner each and without content. Raises OutOfBlocks."""
        if count > len(self._free):
            raise OutOfBlocks(f"{count} blocks asked for, {len(self._free)} free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
            if digest := self._hash_of.pop(block, None):
                del self._block_of[digest]
        return blocks

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest known prefix of this chain of hashes. Changes nothing."""
        blocks = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for each of these blocks, found by :meth:`match`."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def publish(self, block: int, digest: bytes) -> None:
        """The block now holds the keys and values that ``digest`` names. Of two equal blocks the first stays findable."""
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """One owner less for each; ``blocks`` in the order of their content, whose end is forgotten first."""
        for block in reversed(blocks):
            if self._references[block] == 0:
                raise ValueError(f"block {block} is released but nobody owns it")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._hash_of:
                    self._free.move_to_end(block, last=False)
