"""A world in memory for the planners: applies their steps, and lets pods start, serve, die and go, as a kubelet would.

The one job: be what the API server and the kubelet are to the planners, small enough for 10^5 passes.
Not done here: real objects (tests/api) and status.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec

from enginehouse_operator import api, names, steps
from enginehouse_operator.failures import Failure
from enginehouse_operator.plan_engine import EnginePlan, plan_engine
from enginehouse_operator.plan_replica import leave_service, plan_replica
from enginehouse_operator.ranks import ApiServerRow, RankRow, Row, Unit
from enginehouse_operator.seen import Engine, Member, Replica

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def engine_spec(**changes: object) -> api.EngineSpec:
    return msgspec.structs.replace(api.EngineSpec(model=api.Model(uri="hf://a/b")), **changes)


def settled(**changes: object) -> World:
    """Of an engine that is given time."""
    world = World(engine_spec(**changes))
    world.settle()
    return world


def ends(world: World) -> list[steps.EndReplica]:
    """What one pass would end."""
    return [step for step in world.plans()[1] if isinstance(step, steps.EndReplica)]


class World:
    """Replicas and pods by name. ``births`` counts every creation, ``excused`` what may be made again under its name, ``deaths``
    holds what died in which replica, by UID: ranks with their incarnations, or None for a pod or a silent death."""

    def __init__(self, spec: api.EngineSpec) -> None:
        self.spec = spec
        self.engine = Engine(name="e", namespace="n", uid="engine-uid", generation=1)
        self.now = EPOCH
        self.replicas: dict[str, Replica] = {}
        self.births = Counter[str]()
        self.excused = Counter[str]()
        self.deaths: dict[str, set[tuple[int, int] | None]] = {}
        self.uids = 0

    # the operator's side

    def plans(self) -> tuple[EnginePlan, tuple[steps.AnyStep, ...]]:
        """What one pass would do."""
        plan = plan_engine(self.engine, self.spec, tuple(self.replicas.values()), now=self.now)
        taken: list[steps.AnyStep] = [step for replica in self.replicas.values() for step in leave_service(replica)]
        taken += plan.steps
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

    def accepts(self, step: steps.AnyStep) -> bool:
        """Whether the API server does, should the world have changed since the step was planned."""
        match step:
            case steps.CreateReplica():
                return step.name not in self.replicas
            case steps.EndReplica() | steps.DeleteReplica():
                return step.name in self.replicas and self.replicas[step.name].uid == step.uid
            case steps.CreateMember():
                present = self.replicas.get(step.replica)
                return present is not None and step.name not in {member.name for member in present.members}
            case steps.LeaveService() | steps.DeleteMember():
                return any(member.uid == step.uid for replica in self.replicas.values() for member in replica.members)
            case _:
                raise AssertionError(step)

    def apply(self, step: steps.AnyStep) -> None:
        match step:
            case steps.CreateReplica():
                assert step.name not in self.replicas, f"{step.name} is born twice"
                self.births[step.name] += 1
                self.replicas[step.name] = Replica(
                    name=step.name,
                    uid=self.new_uid(),
                    generation=1,
                    created=self.now,
                    copy=step.copy,
                    spec=api.ReplicaSpec(index=step.index, epoch=step.epoch, engine={}, failures=step.failures),
                )
            case steps.ResizeReplica():
                replica = self.replicas[step.name]
                assert replica.copy is not None
                assert replica.spec.end is None
                self.change(replica, copy=replica.copy.with_data(step.data))
            case steps.RemoveRow():
                replica = self.replicas[step.name]
                row = replica.rows[step.place]
                assert (row.name, row.uid) == (step.member, step.member_uid)
                assert row.name not in {member.name for member in replica.members}, "a row goes after its pod"
                self.excused[step.member] += 1
                self.change(replica, rows=tuple(other for other in replica.rows if other is not row))
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
                self.births[step.name] += 1
                assert step.name not in {member.name for member in replica.members}
                leads = step.ordinal == 0
                born = Member(name=step.name, uid=self.new_uid(), ordinal=step.ordinal, is_in_service=leads, created=self.now)
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
                    self.excused[member.name] += present.row_of(member) is None
                    self.change(replica, members=tuple(other for other in present.members if other.name != member.name))
                    moved = True
                elif not member.is_ready and not member.has_ended:
                    self.change_member(member.name, is_ready=True)
                    if any(known.name == member.name for known in replica.rows):
                        continue  # another pod's row stands there: the monitor exits
                    self.change(replica, rows=(*present.rows, self.row(member, present)))
                    moved = True
            moved |= self.bring_units_back(replica.name)
        return moved

    def bring_units_back(self, replica: str) -> bool:
        """Ranks and API servers that restart in place serve again."""
        before = self.replicas[replica].rows

        def back(unit: Unit) -> Unit:
            return msgspec.structs.replace(unit, state="Serving") if unit.state == "Restarting" else unit

        after = tuple(
            msgspec.structs.replace(row, ranks=tuple(map(back, row.ranks)), api_servers=tuple(map(back, row.api_servers)))
            for row in before
        )
        self.change(self.replicas[replica], rows=after)
        return after != before

    def row(self, member: Member, replica: Replica) -> Row:
        """What a member reports that serves."""
        assert replica.copy is not None
        held = sorted(replica.copy.parallelism.ranks_of(member.ordinal))
        ranks = tuple(RankRow(rank=rank, incarnation=1, state="Serving") for rank in held)
        servers = range(replica.copy.api_servers if member.is_leader else 0)
        answer = tuple(ApiServerRow(index=index, incarnation=1, state="Serving") for index in servers)
        return Row(name=member.name, uid=member.uid, state="Serving", ranks=ranks, api_servers=answer, written=self.now)

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
        self.died(replica, (rank, record.incarnation or 0) if told else None)

    def told_again(self, replica: str) -> None:
        """Each death by another process of the same life, to every monitor that has a part of the rank, newest first."""
        known = [record for row in self.replicas[replica].rows for record in row.failures if record.role != "worker"]
        again = [msgspec.structs.replace(record, role="worker", pid=18) for record in reversed(known)]

        def told(row: Row) -> Row:
            held = {part.rank for part in row.ranks}
            return msgspec.structs.replace(row, failures=(*(one for one in again if one.rank in held), *row.failures))

        self.change(self.replicas[replica], rows=tuple(told(row) for row in self.replicas[replica].rows))

    def died(self, replica: str, what: tuple[int, int] | None) -> None:
        self.deaths.setdefault(self.replicas[replica].uid, set()).add(what)

    def api_server_dies(self, replica: str, index: int, *, state: str = "Dead", told: bool = True) -> None:
        """As :meth:`rank_dies`."""
        self.died(replica, None)
        leader = names.member_name(replica, replica_uid=self.replicas[replica].uid, ordinal=0)

        def changed(row: Row) -> Row:
            known = [server for server in row.api_servers if server.index == index]
            if row.name != leader or not known:
                return row
            before = known[0].incarnation
            now = msgspec.structs.replace(known[0], state=state, incarnation=before + (state == "Restarting"))
            record = known[0].death(class_="Signal", signal=9, pid=100 * before + index, detected_time=self.now)
            return msgspec.structs.replace(
                row,
                api_servers=tuple(now if server.index == index else server for server in row.api_servers),
                failures=(*row.failures, record) if told else row.failures,
                written=self.now,
            )

        self.change(self.replicas[replica], rows=tuple(changed(row) for row in self.replicas[replica].rows))

    def kill(self, replica: str, class_: str = "Signal", *, ordinals: frozenset[int] | None = None) -> None:
        """The engine's pods die, or some of them."""
        for member in self.replicas[replica].members:
            if ordinals is not None and member.ordinal not in ordinals:
                continue
            life = max((part.incarnation for part in self.replicas[replica].ranks if part.rank == 0), default=1)
            record = Failure(member=member.name, class_=class_, signal=9, role="engine-core", rank=0, incarnation=life)
            self.change_member(member.name, has_ended=True, is_ready=False, failure=record)
            self.died(replica, None)

    def vanish(self, replica: str, *, ordinals: frozenset[int] | None = None) -> None:
        present = self.replicas[replica]
        left = tuple(member for member in present.members if ordinals is not None and member.ordinal not in ordinals)
        gone = set(present.members) - set(left)
        self.excused.update(member.name for member in gone if present.row_of(member) is None)
        self.change(present, members=left)
        if gone:
            self.died(replica, None)

    def delete_by_hand(self, replica: str) -> None:
        """The object, and its pods with it: nothing may be left that knows which names of its index were given."""
        lost = self.replicas.pop(replica).spec
        self.excused.update(self.name_of(lost.index, epoch) for epoch in range(1, lost.epoch + 1))

    def remove(self, replica: str, *, ordinals: frozenset[int] | None = None) -> None:
        """Somebody deletes the pods, or some of them."""
        for member in self.replicas[replica].members:
            if ordinals is None or member.ordinal in ordinals:
                self.change_member(member.name, deletion_deadline=self.now + timedelta(seconds=60), is_ready=False)
                self.died(replica, None)

    def lose_node(self, replica: str, *, ordinals: frozenset[int] | None = None) -> None:
        """Kubernetes gives the pods up together with their node."""
        self.remove(replica, ordinals=ordinals)
        for member in self.replicas[replica].members:
            if ordinals is None or member.ordinal in ordinals:
                self.change_member(member.name, node_is_lost=True)

    def tell_in_another_order(self, replica: str) -> None:
        """Rows, and what they list, the other way round; failures are oldest first by contract."""
        rows = self.replicas[replica].rows
        turned = tuple(msgspec.structs.replace(row, ranks=row.ranks[::-1], api_servers=row.api_servers[::-1]) for row in rows[::-1])
        self.change(self.replicas[replica], rows=turned)

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
