"""Which actors the launcher wants of its manager."""

from __future__ import annotations

from engine_story import CLEAN, KILLED, Story, started
from enginehouse_engine.launcher import actor_orders, messages, publications
from enginehouse_engine.ray.manager_messages import Actors, Bundle, RankPlacement, WantedRank


def wanted(story: Story) -> Actors | None:
    return actor_orders.actors(story.life, engine="e", strategy="Spread", resource="GPU")


def test_nobody_is_wanted_before_ray_can_be_asked() -> None:
    story = Story(ray=True, ranks=2, workers=2)
    story.life.model_found()
    assert wanted(story) is None
    story.start_ray()
    ranks = tuple(WantedRank(rank=rank, incarnation=1, members=(0, 0)) for rank in (0, 1))
    assert wanted(story) == Actors(engine="e", strategy="Spread", resource="GPU", ranks=ranks)


def test_an_incarnation_is_wanted_until_the_last_of_its_processes_is_gone() -> None:
    story = Story(ray=True, ranks=2, workers=1).serve()
    story.exit(story.workers[0], KILLED)
    actors = wanted(story)
    assert actors is not None
    assert [(rank.rank, rank.incarnation) for rank in actors.ranks] == [(0, 1), (1, 1)]
    assert started(story.exit(story.cores[0], KILLED))
    actors = wanted(story)
    assert actors is not None
    assert [(rank.rank, rank.incarnation) for rank in actors.ranks] == [(0, 2), (1, 1)]


def test_a_rank_that_is_dead_is_not_wanted_and_neither_is_any_when_all_have_ended() -> None:
    story = Story(ray=True, ranks=1, workers=1).serve()
    story.life.asked_to_stop()
    story.life.said(story.servers[0], messages.Drained())
    story.exit(story.cores[0], CLEAN, bye=True)
    actors = wanted(story)
    assert actors is not None
    assert len(actors.ranks) == 1, "its worker is there"


def test_the_row_shows_the_newest_incarnation_of_each_rank_and_what_it_lacks() -> None:
    lost = Bundle(index=0, state="Pending", lacking="member 1 has not joined")
    there = Bundle(index=0, state="Placed", node="pod-0")
    ranks = [
        RankPlacement(rank=1, incarnation=2, strategy="Pack", state="Pending", bundles=(lost,)),
        RankPlacement(rank=0, incarnation=1, strategy="Pack", state="Placed", bundles=(there,)),
        RankPlacement(rank=1, incarnation=1, strategy="Pack", state="Removing", bundles=(there,)),
    ]
    place = {"index": 0, "state": "Placed", "node": "pod-0", "lacking": ""}
    waits = {"index": 0, "state": "Pending", "node": "", "lacking": "member 1 has not joined"}
    assert publications.placement(ranks) == [
        {"rank": 0, "strategy": "Pack", "state": "Placed", "bundles": [place]},
        {"rank": 1, "strategy": "Pack", "state": "Pending", "bundles": [waits]},
    ]
