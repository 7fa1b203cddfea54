"""The scheduler against a plain world: every request ends, nothing is computed twice or in somebody else's block."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse_engine.core.kv_cache import RESERVED_BLOCK, BlockPool
from enginehouse_engine.core.scheduler import Scheduler
from enginehouse_engine.core.sequence import Sequence
from enginehouse_engine.protocol import Sampling


def sequence(name: str, prompt: list[int], max_tokens: int) -> Sequence:
    return Sequence(
        front_end=0,
        request_id=name,
        tokens=array("i", prompt),
        prompt_length=len(prompt),
        sampling=Sampling(max_tokens=max_tokens),
        seed=0,
    )


@dataclass
class World:
    """Runs a scheduler; a block's content is the prefix that was computed into it, so that reuse of wrong content is seen."""

    block_size: int
    usable_blocks: int
    max_batch: int
    max_step_tokens: int
    content: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    steps: int = 0
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.usable_blocks + 1)
        self.scheduler = Scheduler(
            self.pool, block_size=self.block_size, max_batch=self.max_batch, max_step_tokens=self.max_step_tokens
        )
        self.live: list[Sequence] = []

    def add(self, request: Sequence) -> None:
        self.live.append(request)
        self.scheduler.add(request)

    def abort(self, request: Sequence) -> None:
        self.live.remove(request)
        self.scheduler.remove(request)

    def step(self) -> None:
        self.steps += 1
        scheduled = self.scheduler.plan()
        assert scheduled, "requests are there, so a step computes something"
        assert sum(part.count for part in scheduled) <= self.max_step_tokens
        assert self.scheduler.running <= self.max_batch
        assert self.pool.free_blocks + self.pool.used_blocks == self.usable_blocks
        assert all(part.sequence.blocks for part in scheduled), "whoever gave way is not computed"
        written: set[tuple[int, int]] = set()
        for part in scheduled:
            self._check_content(part.sequence, part.start)
            for position in range(part.start, part.start + part.count):
                slot = self._slot(part.sequence, position)
                assert slot not in written, "two sequences write to one slot in one step"
                written.add(slot)
                self.content[slot] = tuple(part.sequence.tokens[: position + 1])
            self._check_content(part.sequence, part.start + part.count)
        self.scheduler.commit(scheduled)
        for part in scheduled:
            if part.sequence.remaining == 0:
                part.sequence.tokens.append(len(part.sequence.tokens) % 3)
                if part.sequence.generated == part.sequence.sampling.max_tokens:
                    self.scheduler.remove(part.sequence)
                    self.live.remove(part.sequence)
                    self.order.append(part.sequence.request_id)

    def _slot(self, request: Sequence, position: int) -> tuple[int, int]:
        block = request.blocks[position // self.block_size]
        assert block != RESERVED_BLOCK
        return block, position % self.block_size

    def _check_content(self, request: Sequence, end: int) -> None:
        for position in range(end):
            assert self.content[self._slot(request, position)] == tuple(request.tokens[: position + 1])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, list[tuple[list[int], int]]]:
    block_size = draw(st.integers(1, 5))
    usable_blocks = draw(st.integers(1, 12))
    world = World(block_size, usable_blocks, draw(st.integers(1, 6)), draw(st.integers(1, 20)))
    limit = block_size * usable_blocks
    requests = []
    if limit >= 2:
        for _ in range(draw(st.integers(1, 8))):
            length = draw(st.integers(1, limit - 1))
            alike = draw(st.booleans())
            prompt = [0] * length if alike else draw(st.lists(st.integers(0, 2), min_size=length, max_size=length))
            requests.append((prompt, draw(st.integers(1, limit - length))))
    return world, requests


@settings(max_examples=400, deadline=None)
@given(worlds(), st.data())
def test_every_request_ends_and_no_block_is_shared_by_mistake(
    drawn: tuple[World, list[tuple[list[int], int]]], data: st.DataObject
) -> None:
    world, requests = drawn
    work = sum(len(prompt) + answer for prompt, answer in requests)
    pending = [sequence(f"r{index}", prompt, answer) for index, (prompt, answer) in enumerate(requests)]
    aborted = 0
    while pending or world.live:
        if pending and (not world.live or data.draw(st.booleans())):
            world.add(pending.pop(0))
        elif data.draw(st.integers(0, 9)) == 0:
            world.abort(data.draw(st.sampled_from(world.live)))
            aborted += 1
        else:
            world.step()
            # The oldest advances in every step, and at worst nobody else does.
            assert world.steps <= work * (len(requests) + 1)
    assert len(world.order) + aborted == len(requests)
    assert world.pool.used_blocks == 0
    assert world.scheduler.running == world.scheduler.waiting == 0


def test_a_request_of_exactly_the_capacity_completes_beside_others() -> None:
    world = World(block_size=4, usable_blocks=4, max_batch=4, max_step_tokens=8)
    world.add(sequence("small", [1, 2], 5))
    world.add(sequence("exact", [5] * 9, 7))
    world.add(sequence("late", [6, 7, 8], 3))
    while world.live:
        world.step()
    assert sorted(world.order) == ["exact", "late", "small"]


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    world = World(block_size=2, usable_blocks=5, max_batch=4, max_step_tokens=16)
    for name in ("first", "second", "third"):
        world.add(sequence(name, [len(name), 1], 5))
    gave_way: list[str] = []
    while world.live:
        world.step()
        gave_way += [each.request_id for each in world.live if not each.blocks]
    assert gave_way[0] == "third"
    assert "first" not in gave_way
    assert world.order[0] == "first"


def test_long_prompts_are_computed_in_chunks_between_which_others_get_their_tokens() -> None:
    world = World(block_size=4, usable_blocks=40, max_batch=4, max_step_tokens=8)
    talker = sequence("talker", [1], 20)
    world.add(talker)
    world.step()
    world.add(sequence("long", list(range(50)), 1))
    for _ in range(6):
        before = talker.generated
        world.step()
        assert talker.generated == before + 1
    assert world.live[1].computed == 6 * 7


def test_a_common_prefix_is_computed_once() -> None:
    world = World(block_size=4, usable_blocks=40, max_batch=4, max_step_tokens=64)
    world.add(sequence("one", list(range(12)) + [50], 1))
    world.step()
    second = sequence("two", list(range(12)) + [60], 2)
    world.add(second)
    scheduled = world.scheduler.plan()
    assert [(part.start, part.count) for part in scheduled] == [(12, 1)]
    assert second.cached_tokens == 12


def test_a_prompt_that_is_wholly_cached_still_computes_its_last_token() -> None:
    world = World(block_size=4, usable_blocks=40, max_batch=4, max_step_tokens=64)
    world.add(sequence("one", list(range(12)), 1))
    world.step()
    again = sequence("two", list(range(12)), 1)
    world.add(again)
    scheduled = world.scheduler.plan()
    assert [(part.start, part.count) for part in scheduled] == [(8, 4)]


@pytest.mark.parametrize("sizes", [{"block_size": 0}, {"max_batch": 0}, {"max_step_tokens": 0}])
def test_sizes_below_one_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Scheduler(BlockPool(4), **{"block_size": 4, "max_batch": 2, "max_step_tokens": 8, **sizes})
