"""The block pool under every order of operations: no block has two lives."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from enginehouse_engine.core.kv_cache import RESERVED_BLOCK, BlockPool, OutOfBlocks, extend_hashes

BLOCK_SIZE = 2


class PoolMachine(RuleBasedStateMachine):
    """Owners take, share, publish and release in any order; a plain model says who owns what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9)
        self.owners: list[tuple[list[int], list[bytes]]] = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=12))
    def take(self, tokens: list[int]) -> None:
        hashes: list[bytes] = []
        extend_hashes(hashes, array("i", tokens), block_size=BLOCK_SIZE)
        reused = self.pool.match(hashes)
        revived = [block for block in reused if self.pool.references(block) == 0]
        fresh = len(hashes) - len(reused)
        if fresh + len(revived) > self.pool.free_blocks:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(self.pool.free_blocks + 1)
            return
        self.pool.share(reused)
        owned_before = {block for blocks, _ in self.owners for block in blocks} | set(reused)
        taken = self.pool.allocate(fresh)
        assert RESERVED_BLOCK not in taken
        assert owned_before.isdisjoint(taken), "a block that somebody owns was handed out"
        self.owners.append((reused + taken, hashes))

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        blocks, hashes = data.draw(st.sampled_from(self.owners))
        for block, digest in zip(blocks, hashes, strict=True):
            self.pool.publish(block, digest)
        found = self.pool.match(hashes)
        assert len(found) == len(hashes), "what was published is found"

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.owners) - 1))
        self.pool.release(self.owners.pop(index)[0])

    @invariant()
    def every_block_is_free_or_owned_as_often_as_the_model_says(self) -> None:
        assert self.pool.free_blocks + self.pool.used_blocks == self.pool.usable_blocks == 8
        counted = [0] * 9
        for blocks, _ in self.owners:
            assert len(set(blocks)) == len(blocks)
            for block in blocks:
                counted[block] += 1
        assert counted == [self.pool.references(block) for block in range(9)]
        assert self.pool.used_blocks == sum(count > 0 for count in counted)


TestPoolMachine = PoolMachine.TestCase


def test_a_released_block_is_found_again_until_it_is_handed_out() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.publish(block, b"content")
    pool.release([block])
    assert pool.match([b"content"]) == [block]
    pool.allocate(2)
    assert pool.match([b"content"]) == []


def test_the_end_of_a_prefix_is_forgotten_before_its_beginning() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    hashes = [b"a", b"b", b"c"]
    for block, digest in zip(blocks, hashes, strict=True):
        pool.publish(block, digest)
    pool.release(blocks)
    pool.allocate(1)
    assert pool.match(hashes) == blocks[:2]


def test_blocks_without_content_are_handed_out_before_cached_ones() -> None:
    pool = BlockPool(4)
    cached, plain = pool.allocate(2)
    pool.publish(cached, b"content")
    pool.release([cached])
    pool.release([plain])
    pool.allocate(2)
    assert pool.match([b"content"]) == [cached]


def test_a_release_too_many_is_an_error() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="nobody owns it"):
        pool.release(blocks)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=40), st.lists(st.integers(0, 2**31 - 1), max_size=40))
def test_hashes_agree_exactly_as_far_as_the_full_blocks_of_two_prompts_do(left: list[int], right: list[int]) -> None:
    hashes_left: list[bytes] = []
    hashes_right: list[bytes] = []
    extend_hashes(hashes_left, array("i", left), block_size=4)
    extend_hashes(hashes_right, array("i", right), block_size=4)
    for index, (one, other) in enumerate(zip(hashes_left, hashes_right, strict=False)):
        assert (one == other) == (left[: (index + 1) * 4] == right[: (index + 1) * 4])


def test_hashes_extended_token_by_token_equal_those_made_at_once() -> None:
    tokens = list(range(23))
    grown: list[bytes] = []
    for end in range(len(tokens) + 1):
        extend_hashes(grown, array("i", tokens[:end]), block_size=5)
    at_once: list[bytes] = []
    extend_hashes(at_once, array("i", tokens), block_size=5)
    assert grown == at_once
    assert len(grown) == 4
