"""Which rank gets a request: the one that holds its beginning, unless it is busier by more than the margin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine.api.balance import MARGIN, Candidate, SentBlocks, block_hashes, choose
from enginehouse_engine.protocol import pack_tokens

CANDIDATES = st.lists(
    st.builds(Candidate, load=st.integers(0, 20), held=st.integers(0, 3), last_chosen=st.integers(0, 9)), min_size=1, max_size=8
)
CHAINS = st.lists(st.integers(0, 5), max_size=8).map(lambda tokens: block_hashes(pack_tokens(tokens), block_size=1))


@given(CANDIDATES)
def test_the_chosen_one_is_at_most_the_margin_busier_than_anybody(candidates: list[Candidate]) -> None:
    assert candidates[choose(candidates)].load <= min(candidate.load for candidate in candidates) + MARGIN


@given(CANDIDATES)
def test_nobody_within_the_margin_holds_more_or_is_idler_with_as_much(candidates: list[Candidate]) -> None:
    chosen = candidates[choose(candidates)]
    near = [other for other in candidates if other.load <= min(each.load for each in candidates) + MARGIN]
    assert all((other.held, -other.load) <= (chosen.held, -chosen.load) for other in near)


@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), max_size=40), st.integers(1, 5))
def test_hashes_agree_exactly_as_far_as_whole_blocks_do(left: list[int], right: list[int], size: int) -> None:
    common = 0
    while common < min(len(left), len(right)) and left[common] == right[common]:
        common += 1
    hashes = [block_hashes(pack_tokens(tokens), block_size=size) for tokens in (left, right)]
    assert [len(chain) for chain in hashes] == [len(left) // size, len(right) // size]
    alike = sum(one == other for one, other in zip(*hashes, strict=False))
    assert alike == common // size


@given(st.lists(CHAINS, max_size=30), st.integers(1, 12))
def test_memory_is_bounded_and_the_newest_beginning_is_known(chains: list[list[int]], most: int) -> None:
    sent = SentBlocks(most)
    for chain in chains:
        sent.add(chain)
        assert len(sent) <= most
        assert sent.held(chain) == min(len(chain), most)


def test_ends_are_forgotten_before_beginnings() -> None:
    sent = SentBlocks(4)
    first, second = ([*range(start, start + 3)] for start in (0, 10))
    sent.add(first)
    sent.add(second)
    assert (sent.held(first), sent.held(second)) == (1, 3)


def test_a_long_prompt_is_hashed_to_a_bound() -> None:
    assert len(block_hashes(bytes(4 * 16 * 5000), block_size=16)) == 1024
