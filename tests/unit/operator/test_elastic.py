"""Ranks that come and go under the planners: no successor, no pod taken away under a rank, nothing left over."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import timedelta

import msgspec
import pytest
from elastic_world import ElasticWorld, elastic_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from enginehouse_operator import api, reasons
from enginehouse_operator.ranks import RankRow
from enginehouse_operator.seen import Replica
from enginehouse_operator.status import engine_status
from enginehouse_operator.steps import AnyStep, DeleteMember, EndReplica, RemoveRow, ResizeReplica


def settled(data: int = 1, **shape: int) -> ElasticWorld:
    world = ElasticWorld(elastic_spec(data, **shape))
    world.settle()
    assert len(world.ready) == 1
    return world


def ask_for(world: ElasticWorld, data: int) -> None:
    world.spec = world.spec.with_data(data)


def ordinals_of(replica: Replica) -> list[int]:
    return sorted(member.ordinal for member in replica.members)


def of_kind(world: ElasticWorld, kind: type[AnyStep]) -> list[AnyStep]:
    return [step for step in world.plans()[1] if isinstance(step, kind)]


SHAPES = [{}, {"tensor": 2, "workers_per_member": 1}, {"tensor": 2, "workers_per_member": 2}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_three_one_and_three_again_is_one_replica_without_leftovers(shape: dict[str, int]) -> None:
    world = settled(1, **shape)
    (before,) = world.live
    for data in (3, 1, 3, 2):
        ask_for(world, data)
        world.settle()
        (replica,) = world.ready
        assert replica.uid == before.uid
        assert [rank.rank for rank in replica.ranks] == list(range(data))
        assert ordinals_of(replica) == list(range(world.spec.members))
        assert {row.name for row in replica.rows} == {member.name for member in replica.members}
        assert next(iter(replica.members)).uid == before.members[0].uid, "the leader is never made again"
    assert world.ranks[before.name][1][1] == 2, "a rank that is added again has a new incarnation"


def test_ranks_that_share_a_pod_come_and_go_with_it() -> None:
    world = settled(2, workers_per_member=2)
    for data in (4, 2, 6, 2):
        ask_for(world, data)
        world.settle()
        (replica,) = world.ready
        assert (len(replica.ranks), ordinals_of(replica)) == (data, list(range(data // 2)))


def test_the_number_of_ranks_is_no_part_of_what_a_replica_was_made_from() -> None:
    one, three = elastic_spec(1).copy(), elastic_spec(3).copy()
    assert one != three
    assert one.lasting == three.lasting
    assert api.revision(one) == api.revision(three)
    spread = api.EngineSpec(executor="Simulated", parallelism=api.Parallelism(data=2, workers_per_member=1)).copy()
    assert spread.lasting == spread


def test_a_change_of_more_than_the_number_makes_a_successor_and_resizes_nothing() -> None:
    world = settled(1)
    (old,) = world.live
    world.spec = msgspec.structs.replace(world.spec.with_data(3), model=api.Model(uri="hf://a/c"))
    assert of_kind(world, ResizeReplica) == []
    assert [step.reason for step in of_kind(world, EndReplica)] == [reasons.ROLLOUT]
    world.settle()
    (new,) = world.ready
    assert new.uid != old.uid
    assert len(new.members) == 3


def test_ranks_go_the_highest_first_and_pods_only_when_they_are_out_of_the_leaders_row() -> None:
    world = settled(3)
    (replica,) = world.live
    ask_for(world, 1)
    world.one_pass()
    assert of_kind(world, DeleteMember) == [], "they drain"
    world.hear(world.live[0])
    while 2 in world.ranks[replica.name]:
        assert of_kind(world, DeleteMember) == []
        world.move(world.live[0])
        world.tell(world.live[0])
    (gone,) = of_kind(world, DeleteMember)
    assert gone.name == world.member(replica.name, 2)
    assert gone.reason == reasons.RANKS_REMOVED


def test_a_rank_that_is_out_below_one_that_is_not_keeps_its_pod() -> None:
    world = settled(3)
    (replica,) = world.live
    ask_for(world, 1)
    world.one_pass()
    del world.ranks[replica.name][1]
    world.tell(world.live[0])
    assert of_kind(world, DeleteMember) == []


def test_a_second_change_waits_until_the_first_is_in_the_leaders_row() -> None:
    world = settled(1)
    ask_for(world, 3)
    assert world.one_pass() > 0
    ask_for(world, 1)
    assert of_kind(world, ResizeReplica) == [], "its launcher may not have heard of three yet"
    (replica,) = world.live
    world.hear(replica)
    world.move(replica)
    world.move(replica)
    world.tell(replica)
    (back,) = of_kind(world, ResizeReplica)
    assert (back.data, back.reason) == (1, reasons.RANKS_REMOVED)


def test_more_ranks_wait_until_nothing_is_left_of_those_that_went() -> None:
    world = settled(2)
    (replica,) = world.live
    ask_for(world, 1)
    while not of_kind(world, RemoveRow):
        world.one_pass()
        world.tick()
        ask_for(world, 1)
    ask_for(world, 2)
    assert of_kind(world, ResizeReplica) == [], "the row of the pod that went is there"
    world.one_pass()
    assert len(of_kind(world, ResizeReplica)) == 1
    world.settle()
    assert world.live[0].uid == replica.uid


def test_who_waits_for_more_ranks_reads_which_pod_is_waited_for() -> None:
    world = settled(2)
    (replica,) = world.live
    ask_for(world, 1)
    while not of_kind(world, DeleteMember):
        world.one_pass()
        world.tick()
    world.one_pass()
    ask_for(world, 2)
    plan, _ = world.plans()
    status = engine_status(world.engine, world.spec, tuple(world.live), plan=plan, problems=(), endpoint="", now=world.now)
    ready = next(found for found in status["conditions"] if found["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", reasons.SCALING)
    assert f"it gets 2 ranks later: pod {world.member(replica.name, 1)} of a rank that left is still there" in ready["message"]


def test_a_leader_that_has_not_reported_yet_is_told_at_once_and_gives_up_what_is_too_much() -> None:
    """A mistyped number must not keep the leader's own place taken."""
    world = ElasticWorld(elastic_spec(64))
    world.one_pass()
    world.one_pass()
    assert len(world.live[0].members) == 64
    ask_for(world, 2)
    world.one_pass()
    world.one_pass()
    leaving = [member.ordinal for member in world.live[0].members if member.deletion_deadline is not None]
    assert sorted(leaving) == list(range(2, 64))
    world.settle()
    assert len(world.ready) == 1


@pytest.mark.parametrize("how", ["kill", "remove", "vanish"])
def test_an_added_member_that_goes_before_a_rank_needs_it_costs_nothing_and_comes_again(how: str) -> None:
    world = settled(1)
    (before,) = world.live
    ask_for(world, 2)
    while len(world.live[0].rows) < 2:
        world.one_pass()
        world.pods_move()
    world.hear(world.live[0])
    world.move(world.live[0])
    world.tell(world.live[0])
    assert world.live[0].leader_ranks == {0: "Serving", 1: "Pending"}
    world.lose(before.name, 1, how)
    (replica,) = world.live
    assert replica.idle_members == {world.member(before.name, 1)}
    assert of_kind(world, EndReplica) == []
    assert [rank.state for rank in replica.ranks] == ["Serving", "Pending"], "whatever the row of what is over says"
    assert replica.living_ranks == {0, 1}
    world.settle()
    (replica,) = world.ready
    assert (replica.uid, replica.restarted_in_place) == (before.uid, ())
    assert len(replica.members) == 2


def test_a_pod_that_ends_again_and_again_is_not_made_oftener_than_every_half_minute() -> None:
    world = settled(1)
    ask_for(world, 2)
    name = world.live[0].name
    births = Counter[float]()
    for _ in range(200):
        world.one_pass()
        world.hear(world.live[0])
        world.pods_move()
        if 1 not in world.ranks[name]:
            world.move(world.live[0])
        world.tell(world.live[0])
        (replica,) = world.live
        young = [member for member in replica.members if member.ordinal == 1 and not member.has_ended]
        for member in young:
            if member.created is not None:
                births[member.created.timestamp()] += 1
            world.lose(name, 1, "kill")
        plan, _ = world.plans()
        if not young and plan.look_again_seconds is not None:
            world.now += timedelta(seconds=plan.look_again_seconds)
    times = sorted(births)
    assert len(times) > 3
    assert min(after - before for before, after in itertools.pairwise(times)) >= 30
    assert of_kind(world, EndReplica) == []


def test_a_member_that_fails_while_nothing_serves_yet_ends_its_replica() -> None:
    """What one pod cannot do at the first start, the model it does not find for instance, is not tried for ever."""
    world = ElasticWorld(elastic_spec(2))
    world.one_pass()
    world.one_pass()
    world.pods_move()
    (replica,) = world.live
    world.ranks[replica.name] = {0: ("Pending", 1), 1: ("Pending", 1)}
    world.tell(replica)
    world.kill(replica.name, "ModelNotFound", ordinals=frozenset({1}))
    plan, _ = world.plans()
    assert [verdict.reason for verdict in plan.waiting] == [reasons.MODEL_NOT_FOUND]
    world.replicas[replica.name] = replica
    world.tell(replica)
    world.vanish(replica.name, ordinals=frozenset({1}))
    assert world.plans()[0].waiting == ()
    assert of_kind(world, EndReplica) == [], "a pod that is only gone is made again"


def test_a_member_of_a_rank_that_lives_ends_its_rank_as_without_ray() -> None:
    world = settled(2)
    (replica,) = world.live
    world.kill(replica.name, ordinals=frozenset({1}))
    assert world.live[0].living_ranks == {0}
    assert [step.reason for step in of_kind(world, EndReplica)] == [reasons.MEMBER_FAILED]


def test_a_dead_rank_that_is_taken_away_ends_nothing_any_more() -> None:
    world = settled(2, workers_per_member=1)
    (replica,) = world.live
    world.rank_dies(replica.name, 1)
    assert len(of_kind(world, EndReplica)) == 1
    ask_for(world, 1)
    assert of_kind(world, EndReplica) == []
    world.one_pass()
    assert of_kind(world, EndReplica) == []
    (replica,) = world.live
    assert (replica.is_ready, [unit.state for unit in replica.ranks]) == (True, ["Serving"])


def test_the_only_rank_that_lives_is_not_taken_away_but_drains_with_its_replica() -> None:
    world = settled(2, workers_per_member=1)
    world.rank_dies(world.live[0].name, 0)
    ask_for(world, 1)
    assert of_kind(world, ResizeReplica) == []
    (end,) = of_kind(world, EndReplica)
    assert (end.reason, end.end.deadline > world.now) == (reasons.RANK_DEAD, True)
    world.settle()
    (replica,) = world.ready
    assert (len(replica.ranks), len(replica.members)) == (1, 1)


def test_the_failure_of_a_rank_that_is_gone_is_not_told_of_a_later_end() -> None:
    world = settled(2)
    (replica,) = world.live
    world.rank_dies(replica.name, 1)
    row = world.live[0].rows[0]
    left = msgspec.structs.replace(row, ranks=(RankRow(rank=0, state="Serving", incarnation=1),))
    world.change(world.live[0], rows=(left, *world.live[0].rows[1:]), copy=replica.copy.with_data(1) if replica.copy else None)
    world.vanish(replica.name)
    (end,) = of_kind(world, EndReplica)
    assert end.end.failure is not None
    assert end.end.failure.class_ == "Lost"


class Elastic(RuleBasedStateMachine):
    """Edits, half-finished passes, and a kubelet, monitor and launcher that each take their time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = ElasticWorld(elastic_spec(1, tensor=2, workers_per_member=1, replicas=1))
        self.models = 0

    @rule(data=st.integers(1, 4))
    def resize(self, data: int) -> None:
        ask_for(self.world, data)

    @rule()
    def roll_out(self) -> None:
        self.models += 1
        self.world.spec = msgspec.structs.replace(self.world.spec, model=api.Model(uri=f"hf://a/b{self.models}"))

    @rule(count=st.integers(0, 6))
    def pass_that_stops_after(self, count: int) -> None:
        for step in self.world.plans()[1][:count]:
            if isinstance(step, EndReplica):
                assert step.reason == reasons.ROLLOUT
            self.world.apply(step)

    @rule()
    def kubelet(self) -> None:
        self.world.pods_move()

    @rule(data=st.data(), what=st.sampled_from(["hear", "move", "tell"]))
    def launcher(self, data: st.DataObject, what: str) -> None:
        for replica in list(self.world.replicas.values()):
            getattr(self.world, what)(replica)

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), how=st.sampled_from(["kill", "remove", "vanish"]))
    def lose_an_idle_member(self, data: st.DataObject, how: str) -> None:
        name, ordinal = data.draw(st.sampled_from(self.idle()))
        serves = any(state == "Serving" for state in (self.world.replicas[name].leader_ranks or {}).values())
        # One that fails before anything serves ends its replica.
        self.world.lose(name, ordinal, how if serves else "vanish")

    def idle(self) -> list[tuple[str, int]]:
        """Members whose ranks the launcher has told to be Pending, or not told."""
        return [
            (replica.name, member.ordinal)
            for replica in self.world.live
            for member in replica.members
            if member.ordinal and not self.world.used(replica, member) and member.name in replica.idle_members
        ]

    @invariant()
    def one_replica_at_most_lives(self) -> None:
        assert len(self.world.live) <= 1

    def teardown(self) -> None:
        self.world.settle()
        (replica,) = self.world.ready
        assert replica.copy == self.world.spec.copy()
        assert ordinals_of(replica) == list(range(self.world.spec.members))
        assert {row.name for row in replica.rows} == {member.name for member in replica.members}
        assert replica.leader_ranks == dict.fromkeys(range(self.world.spec.parallelism.data), "Serving")
        assert self.world.plans()[1] == ()
        assert replica.spec.failures == ()


TestElastic = Elastic.TestCase
TestElastic.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(1, 6), max_size=6))
def test_whatever_is_asked_for_in_a_row_the_last_is_what_becomes_of_it(numbers: list[int]) -> None:
    world = settled(1)
    for data in numbers:
        ask_for(world, data)
        world.one_pass()
        world.tick()
    world.settle()
    (replica,) = world.ready
    assert [rank.rank for rank in replica.ranks] == list(range(numbers[-1] if numbers else 1))
    assert replica.spec.epoch == 1
