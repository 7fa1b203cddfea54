"""A world whose ranks come and go: to the planners' world it adds the leader's launcher, which hears of a new number, places and
drains ranks, and tells its row, each in its own time.

Invariant: a launcher never uses a pod that is being deleted, and no pod is deleted that it uses: both are asserted.
Not done here: deaths of ranks (``world.py``).
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
from world import World, engine_spec

from enginehouse_operator import api, names, steps
from enginehouse_operator.ranks import Placement, RankRow, Row
from enginehouse_operator.seen import Member, Replica


def elastic_spec(data: int = 1, *, tensor: int = 1, workers_per_member: int | None = None, **changes: object) -> api.EngineSpec:
    shape = api.Parallelism(data=data, tensor=tensor, workers_per_member=workers_per_member)
    return engine_spec(executor="Ray", parallelism=shape, **changes)


class ElasticWorld(World):
    """``ranks`` is what each leader's launcher knows, by replica and rank: (state, incarnation)."""

    def __init__(self, spec: api.EngineSpec) -> None:
        super().__init__(spec)
        self.ranks: dict[str, dict[int, tuple[str, int]]] = {}
        self.heard: dict[str, int] = {}
        self.lives: dict[tuple[str, int], int] = {}

    def apply(self, step: steps.AnyStep) -> None:
        if isinstance(step, steps.DeleteMember):
            self._assert_unused(step.name)
        super().apply(step)

    def _assert_unused(self, name: str) -> None:
        for replica in self.live:
            for member in replica.members:
                if member.name == name:
                    assert member.has_ended or not self.used(replica, member), f"{name} is taken away from under its ranks"

    def used(self, replica: Replica, member: Member) -> set[int]:
        """Ranks that the launcher has something of in this pod."""
        assert replica.copy is not None
        known = self.ranks.get(replica.name, {})
        return {
            rank for rank in replica.copy.parallelism.ranks_of(member.ordinal) if known.get(rank, ("Pending", 0))[0] != "Pending"
        }

    def hear(self, replica: Replica) -> None:
        """The monitor tells the launcher, which is there as soon as its row is."""
        assert replica.copy is not None
        if replica.leader is not None and replica.row_of(replica.leader) is not None:
            self.heard[replica.name] = replica.copy.parallelism.data

    def move(self, replica: Replica) -> bool:
        """The launcher does one thing: add, place, drain or remove a rank."""
        ranks, wanted = self.ranks.setdefault(replica.name, {}), self.heard.get(replica.name)
        if wanted is None or replica.leader is None or replica.leader.has_ended:
            return False
        for rank in range(wanted):
            if rank not in ranks:
                life = self.lives[replica.uid, rank] = self.lives.get((replica.uid, rank), 0) + 1
                ranks[rank] = ("Pending", life)
                return True
            state, life = ranks[rank]
            if state == "Pending" and self._can_place(replica, rank):
                ranks[rank] = ("Serving", life)
                return True
        for rank in sorted(ranks, reverse=True):
            if rank >= wanted:
                state, life = ranks[rank]
                if state == "Serving":
                    ranks[rank] = ("Draining", life)
                else:
                    del ranks[rank]
                return True
        return False

    def _can_place(self, replica: Replica, rank: int) -> bool:
        assert replica.copy is not None
        shape = replica.copy.parallelism
        first, after = rank * shape.workers_of_rank, (rank + 1) * shape.workers_of_rank
        wanted = {worker // shape.workers_of_member for worker in range(first, after)}
        there = {member.ordinal for member in replica.members if member.is_ready and not member.has_ended}
        if not wanted <= there:
            return False
        held = [member for member in replica.members if member.ordinal in wanted]
        assert all(member.deletion_deadline is None or replica.spec.end is not None for member in held), "it is on its way out"
        return True

    def tell(self, replica: Replica) -> bool:
        """The leader's row becomes what its launcher knows."""
        leader = replica.leader
        known = self.ranks.get(replica.name)
        if leader is None or replica.row_of(leader) is None or not known:
            return False
        ranks = tuple(RankRow(rank=rank, state=state, incarnation=life) for rank, (state, life) in sorted(known.items()))
        groups = tuple(
            Placement(rank=rank, state="Pending" if state == "Pending" else "Placed") for rank, (state, _) in known.items()
        )

        def told(row: Row) -> Row:
            return msgspec.structs.replace(row, ranks=ranks, placement=groups) if row.name == leader.name else row

        before = replica.rows
        self.change(replica, rows=tuple(told(row) for row in before))
        return self.replicas[replica.name].rows != before

    def row(self, member: Member, replica: Replica) -> Row:
        """At its birth: of its ranks nothing is known yet."""
        return Row(name=member.name, uid=member.uid, state="Starting", written=self.now)

    def pods_move(self) -> bool:
        """Without a word of any launcher."""
        return super().tick()

    def tick(self) -> bool:
        moved = self.pods_move()
        for replica in list(self.replicas.values()):
            self.hear(replica)
            moved |= self.move(self.replicas[replica.name])
            moved |= self.tell(self.replicas[replica.name])
        return moved

    def settle(self, passes: int = 300) -> None:
        super().settle(passes)

    def lose(self, replica: str, ordinal: int, how: str) -> None:
        """A member goes: ``kill`` (its pod stays, Failed), ``remove`` (somebody deletes it) or ``vanish``."""
        match how:
            case "kill":
                self.kill(replica, ordinals=frozenset({ordinal}))
                self._tell_its_end(replica, ordinal)
            case "remove":
                self.change_member(
                    self.member(replica, ordinal), deletion_deadline=self.now + timedelta(seconds=60), is_ready=False
                )
            case "vanish":
                self.vanish(replica, ordinals=frozenset({ordinal}))

    def _tell_its_end(self, replica: str, ordinal: int) -> None:
        """The monitor outlives the launcher: the row says that its parts of ranks are dead, also of those that wait."""
        found, known = self.replicas[replica], self.ranks.get(replica, {})
        assert found.copy is not None
        parts = tuple(
            RankRow(rank=rank, state="Dead", incarnation=known.get(rank, ("", 1))[1])
            for rank in sorted(found.copy.parallelism.ranks_of(ordinal))
        )
        name = self.member(replica, ordinal)
        rows = [msgspec.structs.replace(row, state="Failed", ranks=parts) if row.name == name else row for row in found.rows]
        self.change(found, rows=tuple(rows))

    def member(self, replica: str, ordinal: int) -> str:
        return names.member_name(replica, replica_uid=self.replicas[replica].uid, ordinal=ordinal)
