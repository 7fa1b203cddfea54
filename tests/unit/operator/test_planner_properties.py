"""Both planners against the world model, driven by hypothesis: floors hold at every step, every world settles, and of one death
follows one scale-down, however often, by whomever and in whichever order it is told."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from world import World, engine_spec

from enginehouse_operator import api, reasons
from enginehouse_operator.history import restarts
from enginehouse_operator.steps import AnyStep, EndReplica, LeaveService

HARMS = (
    *("kill", "vanish", "remove", "node", "config", "delete", "rank", "silent rank", "rank back"),
    *("API server", "silent API server", "API server back", "told again", "told in another order"),
)
MODELS = ("hf://a/b", "hf://a/c")
SHAPES = (api.Parallelism(), api.Parallelism(data=2), api.Parallelism(data=2, workers_per_member=1))


DECIDED = (reasons.MEMBER_REMOVED, reasons.MEMBER_FAILED, reasons.MEMBER_LOST)
"""Ends that nobody can put off."""


class Operator(RuleBasedStateMachine):
    """Edits, deaths and half-finished passes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(engine_spec(replicas=2, api_servers=2, restart=api.Restart(max_restarts=2)))
        self.ends: Counter[str] = Counter()
        """By the UID of the replica that ended: what somebody deletes leaves its name to a later one."""

    @rule(
        replicas=st.integers(0, 4),
        unavailable=st.integers(1, 2),
        model=st.sampled_from(MODELS),
        shape=st.sampled_from(SHAPES),
        suspend=st.booleans(),
    )
    def edit(self, replicas: int, unavailable: int, model: str, shape: api.Parallelism, suspend: bool) -> None:
        self.world.spec = msgspec.structs.replace(
            self.world.spec,
            replicas=replicas,
            rollout=api.Rollout(max_unavailable=unavailable),
            model=api.Model(uri=model),
            parallelism=shape,
            suspend=suspend,
        )

    @rule(steps=st.integers(0, 6))
    def pass_that_stops_after(self, steps: int) -> None:
        """A pass whose operator dies after some of its steps. Planned ends keep enough replicas serving."""
        for step in self.world.plans()[1][:steps]:
            serving = self.serving()
            self.world.apply(step)
            if isinstance(step, EndReplica):
                self.ends[step.uid] += 1
            floor = self.world.spec.desired_replicas - self.world.spec.rollout.max_unavailable
            is_decided = isinstance(step, EndReplica) and step.reason in DECIDED
            assert self.serving() >= min(serving, floor) or is_decided

    def serving(self) -> int:
        return sum(replica.is_serving for replica in self.world.live)

    @rule()
    def kubelet(self) -> None:
        self.world.tick()

    @precondition(lambda self: self.world.replicas)
    @rule(
        data=st.data(),
        what=st.sampled_from(HARMS),
        members=st.sampled_from([None, frozenset({0}), frozenset({1})]),
        is_planned=st.booleans(),
    )
    def harm(self, data: st.DataObject, what: str, members: frozenset[int] | None, is_planned: bool) -> None:
        """Between two passes, or between what a pass read and what it does of it."""
        planned = self.world.plans()[1] if is_planned else ()
        self.do_harm(data.draw(st.sampled_from(sorted(self.world.replicas))), what, members, data.draw(st.integers(0, 1)))
        for step in planned:
            if self.world.accepts(step):
                self.world.apply(step)

    def do_harm(self, name: str, what: str, members: frozenset[int] | None, index: int) -> None:
        match what:
            case "kill":
                self.world.kill(name, ordinals=members)
            case "config":
                self.world.kill(name, "InvalidConfig", ordinals=members)
            case "vanish":
                self.world.vanish(name, ordinals=members)
            case "remove":
                self.world.remove(name, ordinals=members)
            case "node":
                self.world.lose_node(name, ordinals=members)
            case "API server":
                self.world.api_server_dies(name, index)
            case "silent API server":
                self.world.api_server_dies(name, index, told=False)
            case "API server back":
                self.world.api_server_dies(name, index, state="Restarting")
            case "told in another order":
                self.world.tell_in_another_order(name)
            case "rank":
                self.world.rank_dies(name, 1)
            case "silent rank":
                self.world.rank_dies(name, 1, told=False)
            case "rank back":
                self.world.rank_dies(name, 0, state="Restarting")
            case "told again":
                self.world.told_again(name)
            case "delete":
                self.world.delete_by_hand(name)

    @invariant()
    def a_replica_ends_once(self) -> None:
        assert all(ends <= 1 for ends in self.ends.values())

    @invariant()
    def who_tells_twice_or_in_another_order_changes_no_plan(self) -> None:
        before = self.gist(self.world.plans()[1])
        present = dict(self.world.replicas)
        for name in present:
            self.world.told_again(name)
            self.world.tell_in_another_order(name)
        assert self.gist(self.world.plans()[1]) == before
        self.world.replicas = present

    @staticmethod
    def gist(taken: tuple[AnyStep, ...]) -> set[tuple[str, str, str]]:
        return {(type(step).__name__, step.name, step.reason) for step in taken}

    @invariant()
    def nothing_dead_stays_in_service_after_the_next_pass(self) -> None:
        leaves = {step.name for step in self.world.plans()[1] if isinstance(step, LeaveService)}
        dead = [replica for replica in self.world.live if replica.is_dead]
        assert {member.name for replica in dead for member in replica.members if member.is_in_service} <= leaves

    @invariant()
    def at_most_one_live_replica_per_index(self) -> None:
        indices = [replica.spec.index for replica in self.world.live]
        assert len(indices) == len(set(indices))

    @invariant()
    def never_more_live_replicas_than_were_ever_asked_for(self) -> None:
        assert len(self.world.live) <= 4

    @invariant()
    def everything_is_born_once(self) -> None:
        """But a pod that went before it reported, and what somebody deleted together with all that was known of it."""
        assert self.world.births <= self.world.excused + Counter(dict.fromkeys(self.world.births, 1))

    @invariant()
    def nothing_dies_for_another_ones_death(self) -> None:
        failed = [replica for replica in self.world.replicas.values() if replica.spec.end is not None and replica.spec.end.failure]
        assert all(replica.uid in self.world.deaths for replica in failed)

    @invariant()
    def a_death_is_carried_once_and_none_is_made_up(self) -> None:
        for replica in self.world.live:
            carried = [failure.identity for failure in replica.spec.failures]
            assert len(carried) == len(set(carried))
            for failure in replica.spec.failures:
                known = self.world.deaths[failure.replica_uid]
                assert (failure.rank, failure.incarnation) in known or None in known

    def teardown(self) -> None:
        """From wherever it is, the world settles: as many replicas as asked for, less the indices that wait for a person."""
        self.world.settle(passes=200)
        plan, taken = self.world.plans()
        assert taken == ()
        assert self.serving() == len(self.world.live), "what is left without a successor serves with the ranks it has"
        floor = self.world.spec.desired_replicas - self.world.spec.rollout.max_unavailable
        may_stop = plan.waiting and self.serving() <= floor
        are_ready = len(self.world.ready) == self.world.spec.desired_replicas - len(plan.waiting)
        assert are_ready or may_stop, "only the last that serve, with a dead part, are left as they are while others wait"
        is_new = all(replica.copy == self.world.spec.copy() for replica in self.world.live)
        assert is_new or may_stop, "only a rollout whose first ones failed for good stops"
        assert all(replica.is_gone for replica in self.world.replicas.values() if not replica.is_live)


TestOperator = Operator.TestCase
TestOperator.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


TROUBLES = ("pod", "rank", "rank back", "API server back", "told again", "removed", "node", "vanished")
COSTLY = ("pod", "rank", "rank back", "API server back")


@given(
    st.lists(st.sampled_from(TROUBLES), max_size=8),
    st.sampled_from([shape for shape in SHAPES if shape.data == 2]),
    st.integers(0, 4),
)
def test_an_index_is_charged_for_each_restart_and_for_each_end_by_a_death_and_for_nothing_else(
    troubles: list[str], shape: api.Parallelism, most: int
) -> None:
    world = World(engine_spec(parallelism=shape, restart=api.Restart(max_restarts=most, window_seconds=10**6)))
    world.settle()
    cost = 0
    for trouble in troubles:
        name = world.live[0].name
        match trouble:
            case "pod":
                world.kill(name)
            case "rank":
                world.rank_dies(name, 1)
            case "rank back":
                world.rank_dies(name, 0, state="Restarting")
            case "told again":
                world.told_again(name)
            case "API server back":
                world.api_server_dies(name, 0, state="Restarting")
            case "removed":
                world.remove(name)
            case "node":
                world.lose_node(name)
            case "vanished":
                world.vanish(name)
        cost += trouble in COSTLY
        world.settle()
        plan, _ = world.plans()
        if trouble in ("pod", "rank") and cost > most:
            assert [verdict.not_before for verdict in plan.waiting] == [None]
            return
        (live,) = world.live
        assert restarts([live]) == cost
        assert (live.name == name) == (trouble in ("rank back", "API server back", "told again"))
