"""Both planners against the world model, driven by hypothesis: floors hold at every step, every world settles."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from world import World, engine_spec

from enginehouse_operator import api, reasons
from enginehouse_operator.steps import EndReplica

MODELS = ("hf://a/b", "hf://a/c")
SHAPES = (api.Parallelism(), api.Parallelism(data=2), api.Parallelism(data=2, workers_per_member=1))


class Operator(RuleBasedStateMachine):
    """Edits, deaths and half-finished passes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(engine_spec(replicas=2, restart=api.Restart(max_restarts=2)))

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
            floor = self.world.spec.desired_replicas - self.world.spec.rollout.max_unavailable
            is_decided = isinstance(step, EndReplica) and step.reason in (reasons.MEMBER_REMOVED, reasons.MEMBER_FAILED)
            assert self.serving() >= min(serving, floor) or is_decided

    def serving(self) -> int:
        return sum(replica.is_serving for replica in self.world.live)

    @rule()
    def kubelet(self) -> None:
        self.world.tick()

    @precondition(lambda self: self.world.replicas)
    @rule(
        data=st.data(),
        what=st.sampled_from(["kill", "vanish", "remove", "config", "rank", "silent rank", "rank back"]),
        members=st.sampled_from([None, frozenset({0}), frozenset({1})]),
    )
    def harm(self, data: st.DataObject, what: str, members: frozenset[int] | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.replicas)))
        match what:
            case "kill":
                self.world.kill(name, ordinals=members)
            case "config":
                self.world.kill(name, "InvalidConfig", ordinals=members)
            case "vanish":
                self.world.vanish(name, ordinals=members)
            case "remove":
                self.world.remove(name, ordinals=members)
            case "rank":
                self.world.rank_dies(name, 1)
            case "silent rank":
                self.world.rank_dies(name, 1, told=False)
            case "rank back":
                self.world.rank_dies(name, 0, state="Restarting")

    @invariant()
    def at_most_one_live_replica_per_index(self) -> None:
        indices = [replica.spec.index for replica in self.world.live]
        assert len(indices) == len(set(indices))

    @invariant()
    def never_more_live_replicas_than_were_ever_asked_for(self) -> None:
        assert len(self.world.live) <= 4

    @invariant()
    def every_replica_is_born_once(self) -> None:
        replicas = {name: births for name, births in self.world.births.items() if name.count("-") == 2}
        assert all(births == 1 for births in replicas.values())

    def teardown(self) -> None:
        """From wherever it is, the world settles: as many replicas as asked for, less the indices that wait for a person."""
        self.world.settle(passes=200)
        plan, taken = self.world.plans()
        assert taken == ()
        assert len(self.world.ready) == self.world.spec.desired_replicas - len(plan.waiting)
        assert self.serving() == len(self.world.live), "what is left without a successor serves with the ranks it has"
        assert all(replica.copy == self.world.spec.copy() for replica in self.world.live)
        assert all(replica.is_gone for replica in self.world.replicas.values() if not replica.is_live)


TestOperator = Operator.TestCase
TestOperator.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
