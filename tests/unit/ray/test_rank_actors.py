"""The life of one rank in Ray, with a cluster that does as the test says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from enginehouse_engine.launcher.process import Process
from enginehouse_engine.ray.actors import Where
from enginehouse_engine.ray.cluster import Answer, Cluster, Group
from enginehouse_engine.ray.manager_messages import Actors, Ended, WantedRank
from enginehouse_engine.ray.placement import Node
from enginehouse_engine.ray.rank_actors import ACTOR_START_SECONDS, ACTOR_TURN_SECONDS, SHORT_SECONDS, RankActors

NODES = [Node(id="n0", name="pod-0", member=0, total={"accelerator": 2.0}, free={"accelerator": 2.0})]
HERE = Where(node="n0", pid=1, devices=())
MANY = 64


@dataclass
class FakeCluster:
    own_node: str = "n0"
    group: Group = field(default_factory=lambda: Group(created=True, removed=False, nodes={0: "n0"}))
    calls: list[tuple[str, str, Callable[[Answer], None]]] = field(default_factory=list)
    """Whose, which method, and who is told."""
    killed: list[str] = field(default_factory=list)
    gone: bool = False

    def make_group(self, name: str, **what: Any) -> str:
        return name

    def look_at(self, group: str) -> Group:
        return self.group

    def remove_group(self, group: str) -> None:
        self.killed.append(group)

    def make_actor(self, process: Process, *, name: str, **where: Any) -> SimpleNamespace:
        return SimpleNamespace(name=name, where=(name, "where"), run=(name, "run"))

    def call(self, method: tuple[str, str], *arguments: Any, told: Callable[[Answer], None]) -> None:
        self.calls.append((*method, told))

    def kill(self, actor: SimpleNamespace) -> None:
        self.killed.append(actor.name)

    def is_gone(self, actor: SimpleNamespace) -> bool:
        return self.gone

    def answer(self, name: str, method: str, answer: Answer) -> None:
        (told,) = [told for called, which, told in self.calls if (called, which) == (name, method)]
        told(answer)

    def ran(self) -> list[str]:
        return [name for name, method, _ in self.calls if method == "run"]


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def told() -> list[Ended]:
    return []


@pytest.fixture
def rank(cluster: FakeCluster, told: list[Ended]) -> RankActors:
    """Of one worker, whose actors were asked where they are."""
    wanted = WantedRank(rank=0, incarnation=1, members=(0,))
    plan = Actors(engine="e", strategy="Pack", resource="accelerator", ranks=(wanted,))
    one = RankActors(cast(Cluster, cluster), wanted, plan, 1, told.append)
    one.create()
    one.look(NODES, now=0.0)
    return one


def test_nobody_runs_before_all_have_said_where_they_are(cluster: FakeCluster, rank: RankActors) -> None:
    cluster.answer("e-r0-i1-core", "where", Answer(HERE))
    assert cluster.ran() == []
    assert not rank.is_settled
    cluster.answer("e-r0-i1-tp0-pp0", "where", Answer(HERE))
    assert cluster.ran() == ["e-r0-i1-core", "e-r0-i1-tp0-pp0"]
    assert rank.is_settled


def test_an_actor_that_does_not_start_is_named_in_time(cluster: FakeCluster, rank: RankActors, told: list[Ended]) -> None:
    cluster.answer("e-r0-i1-core", "where", Answer(HERE))
    rank.look(NODES, now=ACTOR_START_SECONDS - 0.1)
    assert told == []
    rank.look(NODES, now=ACTOR_START_SECONDS)
    assert [(ended.role, ended.how, ended.message) for ended in told] == [
        ("worker", "NotStarted", "TimeoutError: e-r0-i1-tp0-pp0 did not start in 60 s")
    ]
    assert cluster.killed == ["e-r0-i1-tp0-pp0"]
    # It comes after all, or dies of the kill: told once.
    cluster.answer("e-r0-i1-tp0-pp0", "where", Answer(HERE))
    assert cluster.ran() == []
    cluster.answer("e-r0-i1-tp0-pp0", "where", Answer(error=RuntimeError("killed")))
    rank.look(NODES, now=2 * ACTOR_START_SECONDS)
    assert len(told) == 1
    assert rank.is_settled


def test_an_actor_that_waits_for_its_turn_behind_many_others_has_time_for_that(cluster: FakeCluster, told: list[Ended]) -> None:
    """A node of Ray starts one process after the other, of all ranks."""
    ranks = tuple(WantedRank(rank=rank, incarnation=1, members=(0,)) for rank in range(MANY))
    plan = Actors(engine="e", strategy="Pack", resource="accelerator", ranks=ranks)
    one = RankActors(cast(Cluster, cluster), ranks[-1], plan, 1, told.append)
    one.create()
    one.look(NODES, now=0.0)
    one.look(NODES, now=2 * MANY * ACTOR_TURN_SECONDS - 0.1)
    assert told == []
    one.look(NODES, now=2 * MANY * ACTOR_TURN_SECONDS)
    assert [ended.message for ended in told][:1] == [f"TimeoutError: e-r{MANY - 1}-i1-core did not start in 640 s"]


def test_after_a_removal_nothing_is_told_and_it_is_gone_when_ray_says_so(
    cluster: FakeCluster, rank: RankActors, told: list[Ended]
) -> None:
    rank.remove()
    rank.remove()
    assert cluster.killed == ["e-r0-i1-core", "e-r0-i1-tp0-pp0", "e-r0-i1"]
    assert rank.placement.state == "Removing"
    for name in ("e-r0-i1-core", "e-r0-i1-tp0-pp0"):
        cluster.answer(name, "where", Answer(error=RuntimeError("killed")))
    removed = Group(created=False, removed=True, nodes={})
    for actors_gone, group in ((False, cluster.group), (True, cluster.group), (False, removed)):
        cluster.gone, cluster.group = actors_gone, group
        rank.look(NODES, now=1.0)
        assert not rank.is_gone
    cluster.gone = True
    rank.look(NODES, now=3.0)
    assert rank.is_gone
    assert told == []
    assert cluster.ran() == []


def test_an_actor_that_has_ended_is_killed_and_the_others_are_not(
    cluster: FakeCluster, rank: RankActors, told: list[Ended]
) -> None:
    for name in ("e-r0-i1-core", "e-r0-i1-tp0-pp0"):
        cluster.answer(name, "where", Answer(HERE))
    cluster.answer("e-r0-i1-core", "run", Answer())
    assert [(ended.role, ended.how) for ended in told] == [("engine-core", "Returned")]
    assert cluster.killed == ["e-r0-i1-core"]
    assert rank.placement.state == "Placed"


def test_when_ray_knows_that_a_run_has_ended_is_in_the_log_and_whether_its_removal_was_asked_for(
    cluster: FakeCluster, rank: RankActors, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="enginehouse.actors")
    for name in ("e-r0-i1-core", "e-r0-i1-tp0-pp0"):
        cluster.answer(name, "where", Answer(HERE))
    cluster.answer("e-r0-i1-tp0-pp0", "run", Answer(error=RuntimeError("killed")))
    rank.remove()
    cluster.answer("e-r0-i1-core", "run", Answer(error=RuntimeError("killed")))
    assert [record.getMessage() for record in caplog.records] == [
        "the run of e-r0-i1-tp0-pp0 has ended, its removal was not asked for",
        "the run of e-r0-i1-core has ended, its removal was asked for",
    ]


@pytest.mark.parametrize("nodes", [{0: ""}, {0: "n1"}, {}])
def test_a_bundle_that_is_not_where_it_was_is_lost(cluster: FakeCluster, rank: RankActors, nodes: dict[int, str]) -> None:
    assert [bundle.state for bundle in rank.placement.bundles] == ["Placed"]
    cluster.group = Group(created=not nodes, removed=False, nodes=nodes)
    rank.look(NODES, now=1.0)
    assert [(bundle.state, bundle.node) for bundle in rank.placement.bundles] == [("Lost", "pod-0")]


@pytest.mark.parametrize(
    ("nodes", "state"),
    [
        pytest.param([Node(id="n0", name="pod-0", member=0, total={"accelerator": 1.0})], "Lacking", id="all taken"),
        pytest.param([], "Pending", id="its member is yet to join"),
    ],
)
def test_a_group_lacks_something_when_its_members_have_joined_and_have_no_room_for_longer_than_ray_needs(
    cluster: FakeCluster, told: list[Ended], nodes: list[Node], state: str
) -> None:
    wanted = WantedRank(rank=0, incarnation=1, members=(0,))
    plan = Actors(engine="e", strategy="Pack", resource="accelerator", ranks=(wanted,))
    one = RankActors(cast(Cluster, cluster), wanted, plan, 1, told.append)
    cluster.group = Group(created=False, removed=False, nodes={})
    one.create()
    one.look(nodes, now=5.0)
    assert one.placement.state == "Pending", "what Ray tells of free amounts is of a moment ago"
    one.look(nodes, now=5.0 + SHORT_SECONDS)
    assert one.placement.state == state
    one.look(NODES, now=6.0 + SHORT_SECONDS)
    assert one.placement.state == "Pending"
    cluster.group = Group(created=True, removed=False, nodes={0: "n0"})
    one.look(NODES, now=7.0 + SHORT_SECONDS)
    assert one.placement.state == "Placed"
