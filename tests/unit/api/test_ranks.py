"""Who is let in, and what the launcher's word on an incarnation means, message by message."""

from __future__ import annotations

import pytest

from enginehouse_engine.api.ranks import WAITING_BATCHES, Ranks, RankState
from enginehouse_engine.config import ParallelConfig
from enginehouse_engine.protocol import StepStats, pack_tokens

from .conftest import engine_config, hello

CONFIG = engine_config(parallel=ParallelConfig(data=2))
PROMPTS = [pack_tokens([token] * 64) for token in range(4)]


def admit(ranks: Ranks, rank: int, incarnation: int = 1) -> str:
    greeting = hello(CONFIG, rank=rank, incarnation=incarnation)
    identity = f"{rank}-{incarnation}".encode()
    if reason := ranks.why_refused(identity, greeting):
        return reason
    ranks.admit(identity, greeting)
    return ""


def both() -> Ranks:
    ranks = Ranks(CONFIG)
    assert admit(ranks, 0) == admit(ranks, 1) == ""
    return ranks


def over(ranks: Ranks, *states: str) -> list[int]:
    """Who is over after the last of these words on rank 0: state and incarnation."""
    lost = []
    for state in states:
        word, _, incarnation = state.partition(" ")
        lost = ranks.told([RankState(0, int(incarnation), word), RankState(1, 1, "Serving")])
    return [rank.hello.rank for rank in lost]


@pytest.mark.parametrize(
    ("states", "lost"),
    [
        (["Starting 1"], []),
        (["Serving 1"], []),
        (["Draining 1"], []),
        (["Serving 1", "Restarting 1"], [0]),
        (["Serving 1", "Restarting 2"], [0]),
        (["Serving 1", "Dead 1"], [0]),
        (["Dead 1"], [0]),
        # A server that is new hears of the incarnation that comes, not of the one that went.
        (["Restarting 1"], []),
    ],
)
def test_an_incarnation_is_over_when_the_launcher_says_so(states: list[str], lost: list[int]) -> None:
    assert over(both(), *states) == lost


def test_the_incarnation_that_is_being_started_is_let_in_and_stays() -> None:
    ranks = both()
    assert over(ranks, "Serving 1", "Restarting 1") == [0]
    assert admit(ranks, 0, 1) == "incarnation 1 of rank 0 has said hello before"
    ranks.remove(next(rank for rank in ranks if rank.hello.rank == 0))
    assert over(ranks, "Restarting 2") == []
    assert admit(ranks, 0, 2) == ""
    assert over(ranks, "Restarting 2", "Serving 2") == []
    assert over(ranks, "Dead 2") == [0]
    assert ranks.is_over(b"0-2")
    assert not ranks.is_over(b"1-1")


def test_an_incarnation_that_was_over_before_its_hello_is_refused() -> None:
    ranks = Ranks(CONFIG)
    over(ranks, "Restarting 2")
    assert admit(ranks, 0, 1) == "incarnation 1 of rank 0 is over: the launcher says so"
    assert admit(ranks, 0, 2) == ""


def test_a_rank_that_was_given_up_comes_back_later_or_joins_or_leaves_those_that_serve_is_not_waited_for() -> None:
    ranks = Ranks(CONFIG)
    assert ranks.missing() == [0, 1]
    over(ranks, "Serving 1")
    assert ranks.missing() == [0, 1]
    for state in ("Restarting 2", "Dead 2", "Pending 3", "Starting 3", "Draining 3"):
        over(ranks, state)
        assert ranks.missing() == [1]


def test_while_the_engine_starts_those_are_waited_for_that_have_a_place() -> None:
    ranks = Ranks(CONFIG)
    ranks.told([RankState(0, 1, "Starting"), RankState(1, 1, "Pending"), RankState(2, 1, "Starting")])
    assert ranks.missing() == [0, 2]


def test_a_rank_that_leaves_is_chosen_no_more_and_has_drained_when_its_last_sequence_has_ended() -> None:
    ranks = both()
    leaving = ranks.by_identity(b"1-1")
    assert leaving is not None
    leaving.in_flight |= {"a", "b"}
    assert ranks.told([RankState(0, 1, "Serving"), RankState(1, 1, "Draining")]) == []
    assert {chosen.hello.rank for _ in range(4) if (chosen := ranks.choose(b""))} == {0}
    assert (len(ranks), ranks.taking, ranks.drained()) == (2, [ranks.by_identity(b"0-1")], set())
    leaving.in_flight.remove("a")
    assert ranks.drained() == set()
    leaving.in_flight.remove("b")
    assert ranks.drained() == {(1, 1)}


def test_a_rank_that_leaves_and_is_not_known_here_has_drained() -> None:
    """A server that comes back in the middle of a drain must not hold it up."""
    ranks = Ranks(CONFIG)
    ranks.told([RankState(0, 1, "Serving"), RankState(1, 3, "Draining")])
    assert ranks.drained() == {(1, 3)}


def test_a_rank_that_is_in_the_list_no_more_is_over_and_comes_back_with_a_later_incarnation_only() -> None:
    ranks = both()
    ranks.told([RankState(0, 1, "Serving"), RankState(1, 1, "Serving")])
    gone = ranks.told([RankState(0, 1, "Serving")])
    assert [rank.hello.rank for rank in gone] == [1]
    for rank in gone:
        ranks.remove(rank)
    assert ranks.is_over(b"1-1")
    assert (ranks.drained(), ranks.outage()) == (set(), "")
    ranks.told([RankState(0, 1, "Serving"), RankState(1, 2, "Starting")])
    assert admit(ranks, 1, 1) == "incarnation 1 of rank 1 has said hello before"
    assert admit(ranks, 1, 2) == ""


def test_a_rank_beyond_those_that_the_engine_began_with_is_let_in_also_before_the_launcher_has_told_of_it() -> None:
    ranks = both()
    assert admit(ranks, 2) == ""
    assert ranks.told([RankState(rank, 1, "Serving") for rank in range(3)]) == []


def test_a_rank_that_joins_lowers_the_limit_which_stays_low_when_it_leaves() -> None:
    ranks = both()
    ranks.admit(b"2-1", hello(CONFIG, rank=2, max_context_length=8))
    ranks.told([RankState(0, 1, "Serving"), RankState(1, 1, "Serving"), RankState(2, 1, "Serving")])
    for rank in ranks.told([RankState(0, 1, "Serving"), RankState(1, 1, "Serving")]):
        ranks.remove(rank)
    assert (len(ranks), ranks.max_context_length) == (2, 8)


def test_the_limit_only_falls() -> None:
    ranks = both()
    limit = ranks.max_context_length
    assert limit is not None
    ranks.lower_limit(limit - 1)
    ranks.lower_limit(limit + 1)
    ranks.remove(next(iter(ranks)))
    admit(ranks, 0, 2)
    assert ranks.max_context_length == limit - 1


def test_short_prompts_go_to_the_idlest_in_turn() -> None:
    config = engine_config(parallel=ParallelConfig(data=3))
    ranks = Ranks(config)
    assert ranks.max_context_length is None
    assert ranks.choose(b"") is None
    for rank, limit in enumerate((90, 50, 70)):
        ranks.admit(f"{rank}-1".encode(), hello(config, rank=rank, max_context_length=limit))
    assert ranks.max_context_length == 50
    by_rank = {rank.hello.rank: rank for rank in ranks}
    assert [chosen.hello.rank for _ in range(6) if (chosen := ranks.choose(b""))] == [0, 1, 2, 0, 1, 2]
    by_rank[0].in_flight.update("ab")
    by_rank[1].update(StepStats(running=1, waiting=2))
    assert [chosen.hello.rank for _ in range(2) if (chosen := ranks.choose(b""))] == [2, 2]


def test_equal_beginnings_go_to_one_rank_and_others_to_the_idler_one() -> None:
    ranks = both()
    homes = {}
    for prompt in PROMPTS:
        rank = ranks.choose(prompt)
        assert rank is not None
        homes[prompt] = rank
    assert len({rank.hello.rank for rank in homes.values()}) == 2
    for prompt, home in homes.items():
        assert ranks.choose(prompt) is home
        home.update(StepStats(running=4))
        assert ranks.choose(prompt) is home
        home.update(StepStats(running=5))
        assert ranks.choose(prompt) is not home
        home.update(StepStats())


def test_load_is_what_is_ours_and_what_the_core_has_beyond_it() -> None:
    rank = next(iter(both()))
    rank.in_flight |= {"a", "b"}
    rank.update(StepStats(running=4, waiting=1))
    rank.in_flight.add("c")
    assert (rank.others, rank.load()) == (3, 6)
    rank.update(StepStats(running=1))
    assert (rank.others, rank.load()) == (0, 3)


def test_ranks_are_full_when_so_many_batches_wait_at_each() -> None:
    ranks = both()
    assert not Ranks(CONFIG).are_full
    first, second = ranks
    most = first.hello.max_batch * (1 + WAITING_BATCHES)
    first.update(StepStats(running=8, waiting=most - 8))
    assert (first.is_full(), ranks.are_full) == (True, False)
    second.update(StepStats(running=most))
    assert ranks.are_full
