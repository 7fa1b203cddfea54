"""What is told of placement, for every mixture of rows."""

from __future__ import annotations

import msgspec
import pytest
from elastic_world import ElasticWorld, elastic_spec

from enginehouse_operator import reasons
from enginehouse_operator.conditions import Condition
from enginehouse_operator.placement import placement_condition, placement_problem
from enginehouse_operator.pod_state import Problem
from enginehouse_operator.ranks import Bundle, Placement, RankRow
from enginehouse_operator.seen import Replica

NOWHERE = "needs accelerator: 1, no node has it"


def replica(groups: list[Placement], *, data: int = 2, dead: tuple[int, ...] = ()) -> Replica:
    world = ElasticWorld(elastic_spec(data))
    world.settle()
    (found,) = world.live
    ranks = tuple(RankRow(rank=rank, state="Dead" if rank in dead else "Serving", incarnation=1) for rank in range(data))
    rows = [
        row if number else type(row)(name=row.name, uid=row.uid, ranks=ranks, placement=tuple(groups))
        for number, row in enumerate(found.rows)
    ]
    world.change(found, rows=tuple(rows))
    return world.live[0]


def placed(rank: int) -> Placement:
    return Placement(rank=rank, state="Placed", bundles=(Bundle(index=0),))


def lacks(rank: int, *bundles: str, state: str = "Lacking") -> Placement:
    return Placement(rank=rank, state=state, bundles=tuple(Bundle(index=index, lacking=text) for index, text in enumerate(bundles)))


def told(*replicas: Replica) -> Condition:
    return placement_condition(replicas)


def test_the_shortage_names_bundle_rank_and_resource_and_nothing_that_has_its_place() -> None:
    short = replica([lacks(1, "", NOWHERE), placed(0)])
    problem = placement_problem(short)
    assert problem is not None
    assert (problem.reason, problem.wants_person) == (reasons.PLACEMENT_LACKING, False)
    assert problem.message == f"{short.name}: bundle 1 of rank 1 {NOWHERE}"
    assert told(short) == Condition(type="PlacementReady", is_true=False, reason=problem.reason, message=problem.message)


def test_a_long_shortage_is_counted() -> None:
    problem = placement_problem(replica([lacks(1, *[NOWHERE] * 9)]))
    assert problem is not None
    assert problem.message.count("bundle ") == 4
    assert problem.message.endswith("; 5 bundles more")


def test_it_is_ready_when_all_living_ranks_of_all_replicas_have_their_place() -> None:
    whole, half = replica([placed(0), placed(1)]), replica([placed(0)])
    assert told(whole).is_true is True
    assert told(whole, half).is_true is None, "of one rank nothing was told yet"
    assert told().is_true is None
    assert told(replica([placed(0)], dead=(1,))).is_true is True


def test_of_ranks_that_are_dead_or_to_go_nothing_is_lacking() -> None:
    assert placement_problem(replica([placed(0), lacks(1, NOWHERE)], dead=(1,))) is None
    assert placement_problem(replica([placed(0), placed(1), lacks(2, NOWHERE, state="Removing")])) is None
    assert placement_problem(replica([lacks(0, NOWHERE, state="Placed"), placed(1)])) is None, "an older word"


@pytest.mark.parametrize("problem", [None, Problem(reason=reasons.UNSCHEDULABLE, message="no node takes it")])
def test_a_member_that_is_on_its_way_is_no_shortage_and_one_whose_pod_cannot_run_is(problem: Problem | None) -> None:
    absent = "needs accelerator: 1, member 1 has not joined"
    found = replica([placed(0), lacks(1, absent, state="Pending")])
    members = [msgspec.structs.replace(member, problem=problem if member.ordinal else None) for member in found.members]
    found = msgspec.structs.replace(found, members=tuple(members))
    reason = reasons.PLACEMENT_LACKING if problem else reasons.PLACEMENT_PENDING
    assert (placement_problem(found) is None) == (problem is None)
    words = f"{found.name}: bundle 0 of rank 1 {absent}"
    assert told(found) == Condition(type="PlacementReady", is_true=False, reason=reason, message=words)


def test_a_group_that_waits_for_nothing_is_about_to_be_placed() -> None:
    found = told(replica([placed(0), lacks(1, "", state="Pending")]))
    assert (found.is_true, found.reason) == (False, reasons.PLACEMENT_PENDING)
    assert found.message.endswith(": Ray is about to")
