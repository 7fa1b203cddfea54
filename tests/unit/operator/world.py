"""A world in memory for the planners: applies their steps, and lets pods start, serve, die and go, as a kubelet would.

The one job: be what the API server and the kubelet are to the planners, small enough for 10^5 passes.
Not done here: real objects (tests/api) and status.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from enginehouse_operator import api, names, steps
from enginehouse_operator.failures import Failure
from enginehouse_operator.observe import Engine, Member, Replica
from enginehouse_operator.plan_engine import EnginePlan, plan_engine
from enginehouse_operator.plan_replica import plan_replica
from enginehouse_operator.ranks import RankRow, Row

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def engine_spec(**changes: object) -> api.EngineSpec:
    return msgspec.structs.replace(api.EngineSpec(model=api.Model(uri="hf://a/b")), **changes)


class World:
    """Replicas and pods by name. ``births`` counts every creation."""

    def __init__(self, spec: api.EngineSpec) -> None:
        self.spec = spec
        self.engine = Engine(name="e", namespace="n", uid="engine-uid", generation=1)
        self.now = EPOCH
        self.replicas: dict[str, Replica] = {}
        self.births: dict[str, int] = {}
        self.uids = 0

    # the operator's side

    def plans(self) -> tuple[EnginePlan, tuple[steps.AnyStep, ...]]:
        """What one pass would do."""
        plan = plan_engine(self.engine, self.spec, tuple(self.replicas.values()), now=self.now)
        taken = list(plan.steps)
        ending = {step.name for step in plan.steps if isinstance(step, steps.EndReplica)}
        for replica in self.replicas.values():
            if replica.name not in ending:
                taken += plan_replica(replica, now=self.now)
        return plan, tuple(taken)

    def one_pass(self) -> int:
        """Plan and apply; how many steps there were."""
        _, taken = self.plans()
        for step in taken:
            self.apply(step)
        return len(taken)

    def apply(self, step: steps.AnyStep) -> None:
        match step:
            case steps.CreateReplica():
                assert step.name not in self.replicas, f"{step.name} is born twice"
                self.births[step.name] = self.births.get(step.name, 0) + 1
                self.replicas[step.name] = Replica(
                    name=step.name,
                    uid=self.new_uid(),
                    generation=1,
                    created=self.now,
                    copy=step.copy,
                    spec=api.ReplicaSpec(index=step.index, epoch=step.epoch, engine={}, failures=step.failures),
                )
            case steps.EndReplica():
                replica = self.replicas[step.name]
                assert replica.spec.end is None, "an ending is written once"
                self.change(replica, spec=msgspec.structs.replace(replica.spec, end=step.end))
            case steps.DeleteReplica():
                assert not self.replicas[step.name].members, "a replica with pods is not deleted"
                del self.replicas[step.name]
            case steps.CreateMember():
                replica = self.replicas[step.replica]
                assert replica.spec.end is None, "no member is made for a replica that ends"
                self.births[step.name] = self.births.get(step.name, 0) + 1
                assert step.name not in {member.name for member in replica.members}
                leads = step.ordinal == 0
                born = Member(name=step.name, uid=self.new_uid(), ordinal=step.ordinal, is_in_service=leads)
                self.change(replica, members=(*replica.members, born))
            case steps.LeaveService():
                self.change_member(step.name, is_in_service=False)
            case steps.DeleteMember():
                self.change_member(step.name, deletion_deadline=self.now + timedelta(seconds=75))
            case _:
                raise AssertionError(step)

    # the kubelet's and the monitor's side

    def settle(self, passes: int = 60) -> None:
        """Passes and kubelet ticks until nothing is left to do; fails when that does not happen."""
        for _ in range(passes):
            acted = self.one_pass()
            moved = self.tick()
            if not acted and not moved:
                plan, _ = self.plans()
                if plan.look_again_seconds is None:
                    return
                self.now += timedelta(seconds=plan.look_again_seconds)
        raise AssertionError(f"did not settle in {passes} passes: {self.plans()[1]}")

    def tick(self) -> bool:
        """Pods being deleted go, the others serve and report."""
        moved = False
        for replica in list(self.replicas.values()):
            for member in replica.members:
                present = self.replicas[replica.name]
                if member.deletion_deadline is not None:
                    self.change(replica, members=tuple(other for other in present.members if other.name != member.name))
                    moved = True
                elif not member.is_ready and not member.has_ended:
                    self.change_member(member.name, is_ready=True)
                    if any(known.name == member.name for known in replica.rows):
                        continue  # another pod's row stands there: the monitor exits
                    self.change(replica, rows=(*present.rows, self.row(member, present)))
                    moved = True
            moved |= self.bring_ranks_back(replica.name)
        return moved

    def bring_ranks_back(self, replica: str) -> bool:
        """Those that restart in place serve again."""
        before = self.replicas[replica].rows

        def back(rank: RankRow) -> RankRow:
            return msgspec.structs.replace(rank, state="Serving") if rank.state == "Restarting" else rank

        after = tuple(msgspec.structs.replace(row, ranks=tuple(back(rank) for rank in row.ranks)) for row in before)
        self.change(self.replicas[replica], rows=after)
        return after != before

    def row(self, member: Member, replica: Replica) -> Row:
        """What a member reports that serves."""
        assert replica.copy is not None
        held = sorted(replica.copy.parallelism.ranks_of(member.ordinal))
        ranks = tuple(RankRow(rank=rank, incarnation=1, state="Serving") for rank in held)
        return Row(name=member.name, uid=member.uid, state="Serving", ranks=ranks, written=self.now)

    def rank_dies(self, replica: str, rank: int, *, state: str = "Dead", class_: str = "Signal", told: bool = True) -> None:
        """One rank dies while the others go on; ``Restarting`` is its next incarnation. Not ``told``: nobody learns of what."""
        known = [part.incarnation for part in self.replicas[replica].ranks if part.rank == rank]
        incarnation = max(known, default=1)
        record = Failure(class_=class_, signal=9, role="engine-core", rank=rank, pid=17, detected_time=self.now)
        record = msgspec.structs.replace(record, incarnation=incarnation)
        incarnation += state == "Restarting"
        leader = names.member_name(replica, replica_uid=self.replicas[replica].uid, ordinal=0)

        def changed(row: Row) -> Row:
            ranks = tuple(
                msgspec.structs.replace(part, state=state, incarnation=incarnation) if part.rank == rank else part
                for part in row.ranks
            )
            failures = (*row.failures, record) if told and row.name == leader else row.failures
            return msgspec.structs.replace(row, ranks=ranks, failures=failures, written=self.now)

        self.change(self.replicas[replica], rows=tuple(changed(row) for row in self.replicas[replica].rows))

    def kill(self, replica: str, class_: str = "Signal", *, ordinals: frozenset[int] | None = None) -> None:
        """The engine's pods die, or some of them."""
        for member in self.replicas[replica].members:
            if ordinals is not None and member.ordinal not in ordinals:
                continue
            record = Failure(member=member.name, class_=class_, signal=9, role="engine-core", rank=0, incarnation=1)
            self.change_member(member.name, has_ended=True, is_ready=False, failure=record)

    def vanish(self, replica: str, *, ordinals: frozenset[int] | None = None) -> None:
        present = self.replicas[replica].members
        left = tuple(member for member in present if ordinals is not None and member.ordinal not in ordinals)
        self.change(self.replicas[replica], members=left)

    def remove(self, replica: str, *, ordinals: frozenset[int] | None = None) -> None:
        """Somebody deletes the pods, or some of them."""
        for member in self.replicas[replica].members:
            if ordinals is None or member.ordinal in ordinals:
                self.change_member(member.name, deletion_deadline=self.now + timedelta(seconds=60), is_ready=False)

    # reading

    @property
    def live(self) -> list[Replica]:
        return sorted((r for r in self.replicas.values() if r.is_live), key=lambda r: r.spec.index)

    @property
    def ready(self) -> list[Replica]:
        return [replica for replica in self.live if replica.is_ready]

    def new_uid(self) -> str:
        self.uids += 1
        return f"uid-{self.uids}"

    def change(self, replica: Replica, **changes: object) -> None:
        self.replicas[replica.name] = msgspec.structs.replace(self.replicas[replica.name], **changes)

    def change_member(self, name: str, **changes: object) -> None:
        for replica in list(self.replicas.values()):
            members = tuple(
                msgspec.structs.replace(member, **changes) if member.name == name else member for member in replica.members
            )
            self.change(replica, members=members)

    def name_of(self, index: int, epoch: int) -> str:
        return names.replica_name("e", engine_uid="engine-uid", index=index, epoch=epoch)
