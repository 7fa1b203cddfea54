"""Replicas of several ranks and several members: who makes them, what dies with what, and what the operator does about it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import World, ends, engine_spec, settled

from enginehouse_operator import api, names, observe, reasons
from enginehouse_operator.plan_engine import plan_engine
from enginehouse_operator.ranks import RankRow, Row, merged
from enginehouse_operator.status import engine_status, replica_status

TWO_RANKS = api.Parallelism(data=2)
SPREAD = api.Parallelism(data=2, tensor=2, workers_per_member=1)
"""Four members: the leader, its rank's other worker, and the two of rank 1."""


def published(world: World) -> dict[str, Any]:
    plan, replicas = world.plans()[0], tuple(world.replicas.values())
    status = engine_status(world.engine, world.spec, replicas, plan=plan, problems=(), endpoint="", now=world.now)
    world.engine = msgspec.structs.replace(world.engine, status=status)
    return status


def condition(status: dict[str, Any], kind: str) -> tuple[str, str, str]:
    found = next(found for found in status["conditions"] if found["type"] == kind)
    return found["status"], found["reason"], found["message"]


# members


def test_all_members_are_made_in_one_pass_and_only_the_leader_serves() -> None:
    world = World(engine_spec(parallelism=SPREAD))
    world.one_pass()
    world.one_pass()
    (replica,) = world.live
    assert [member.ordinal for member in replica.members] == [0, 1, 2, 3]
    assert [member.is_in_service for member in replica.members] == [True, False, False, False]
    expected = [names.member_name(replica.name, replica_uid=replica.uid, ordinal=ordinal) for ordinal in range(4)]
    assert [member.name for member in replica.members] == expected
    world.settle()
    assert world.plans()[1] == ()
    assert world.live[0].is_ready


def test_a_missing_member_without_a_row_is_made_and_no_other_one_again() -> None:
    world = World(engine_spec(parallelism=SPREAD))
    world.one_pass()
    world.one_pass()
    world.vanish(world.name_of(0, 1), ordinals=frozenset({2}))
    world.settle()
    (replica,) = world.ready
    assert replica.name == world.name_of(0, 1)
    births = {member.ordinal: world.births[member.name] for member in replica.members}
    assert births == {0: 1, 1: 1, 2: 2, 3: 1}


def test_a_replica_is_not_ready_while_one_of_its_members_is_leaving() -> None:
    world = settled(parallelism=SPREAD)
    world.remove(world.name_of(0, 1), ordinals=frozenset({3}))
    assert not world.live[0].is_ready
    (end,) = ends(world)
    assert (end.reason, end.end.deadline) == (reasons.MEMBER_REMOVED, world.now + timedelta(seconds=60))


@pytest.mark.parametrize(
    "change", [{"suspend": True}, {"replicas": 0}, {"model": api.Model(uri="hf://a/c")}], ids=["suspend", "scale", "rollout"]
)
def test_a_planned_end_stops_all_members_and_takes_the_label_off_the_leader(change: dict[str, Any]) -> None:
    world = settled(parallelism=SPREAD)
    world.spec = engine_spec(parallelism=SPREAD, **change)
    world.one_pass()
    old = world.replicas[world.name_of(0, 1)]
    taken = [step for step in world.plans()[1] if step.name in {member.name for member in old.members}]
    assert [type(step).__name__ for step in taken] == ["LeaveService", *["DeleteMember"] * 4]
    world.settle()
    assert all(replica.is_gone for replica in world.replicas.values() if not replica.is_live)
    assert len(world.ready) == world.spec.desired_replicas


# deaths


@pytest.mark.parametrize("how", ["kill", "vanish"])
def test_the_leader_takes_all_ranks_with_it(how: str) -> None:
    world = settled(parallelism=SPREAD)
    getattr(world, how)(world.name_of(0, 1), ordinals=frozenset({0}))
    (end,) = ends(world)
    assert end.reason == {"kill": reasons.MEMBER_FAILED, "vanish": reasons.MEMBER_LOST}[how]
    assert end.end.deadline == world.now
    world.settle()
    assert [replica.spec.epoch for replica in world.ready] == [2]


@pytest.mark.parametrize("how", ["kill", "vanish"])
def test_a_lost_worker_leaves_the_other_rank_serving_until_the_drain_is_over(how: str) -> None:
    world = settled(parallelism=SPREAD)
    getattr(world, how)(world.name_of(0, 1), ordinals=frozenset({2}))
    (replica,) = world.live
    assert (replica.is_serving, replica.is_ready, replica.living_ranks) == (True, False, {0})
    (end,) = ends(world)
    assert end.end.deadline == world.now + timedelta(seconds=60)
    world.settle()
    assert [replica.spec.epoch for replica in world.ready] == [2]


@pytest.mark.parametrize("how", ["kill", "vanish"])
def test_a_worker_that_nobody_saw_die_delays_its_replica_once_and_not_for_ever(how: str) -> None:
    world = settled(parallelism=SPREAD)
    world.kill(world.name_of(0, 1))
    world.settle()
    getattr(world, how)(world.name_of(0, 2), ordinals=frozenset({2}))
    died = world.now
    assert ends(world) == []
    world.settle()
    assert [(replica.spec.epoch, replica.created - died) for replica in world.ready] == [(3, timedelta(seconds=10))]


def test_a_dead_rank_ends_its_replica_by_a_drain_with_the_cause() -> None:
    world = settled(parallelism=TWO_RANKS)
    world.rank_dies(world.name_of(0, 1), 1)
    (end,) = ends(world)
    assert (end.reason, end.end.deadline) == (reasons.RANK_DEAD, world.now + timedelta(seconds=60))
    failure = end.end.failure
    assert failure is not None
    assert (failure.rank, failure.signal, failure.replica) == (1, 9, world.name_of(0, 1))
    assert failure.member == world.live[0].members[0].name
    world.settle()
    assert [(replica.spec.epoch, len(replica.spec.failures)) for replica in world.ready] == [(2, 1)]


def test_a_replica_whose_last_rank_is_dead_ends_at_once() -> None:
    world = settled(parallelism=TWO_RANKS)
    for rank in (0, 1):
        world.rank_dies(world.name_of(0, 1), rank)
    (end,) = ends(world)
    assert (end.reason, end.end.deadline) == (reasons.RANK_DEAD, world.now)


def test_a_rank_that_restarts_in_place_ends_nothing() -> None:
    world = settled(parallelism=TWO_RANKS)
    world.rank_dies(world.name_of(0, 1), 1, state="Restarting")
    assert world.plans()[1] == ()
    assert world.live[0].living_ranks == {0, 1}


def test_a_dead_rank_waits_until_enough_other_replicas_serve() -> None:
    world = settled(parallelism=TWO_RANKS, replicas=2)
    world.change_member(world.live[1].members[0].name, is_ready=False)
    world.rank_dies(world.name_of(0, 1), 0)
    assert ends(world) == [], "it is the only one that serves"
    world.change_member(world.live[1].members[0].name, is_ready=True)
    assert [end.name for end in ends(world)] == [world.name_of(0, 1)]


def test_a_replica_with_living_ranks_serves_on_when_the_budget_is_spent() -> None:
    world = settled(parallelism=TWO_RANKS, restart=api.Restart(max_restarts=0))
    world.rank_dies(world.name_of(0, 1), 1)
    assert world.plans()[1] == ()
    status = published(world)
    assert condition(status, "Stalled")[:2] == ("True", reasons.RESTART_BUDGET_SPENT)
    assert condition(status, "Available")[0] == "True"
    world.engine = msgspec.structs.replace(world.engine, resume_after=world.now)
    world.settle()
    assert [replica.spec.epoch for replica in world.ready] == [2]


def test_a_worker_that_is_lost_is_not_made_again_while_its_replica_serves_on() -> None:
    world = settled(parallelism=SPREAD, restart=api.Restart(max_restarts=0))
    before = dict(world.births)
    world.kill(world.name_of(0, 1), ordinals=frozenset({2}))
    assert world.plans()[1] == ()
    world.settle()
    assert world.births == before


def test_a_replica_with_living_ranks_serves_on_while_its_successor_has_to_wait() -> None:
    world = settled(parallelism=TWO_RANKS)
    world.kill(world.name_of(0, 1))
    world.settle()
    world.rank_dies(world.name_of(0, 2), 1)
    died = world.now
    assert world.plans()[1] == ()
    assert world.plans()[0].look_again_seconds == 10
    world.settle()
    assert [(replica.spec.epoch, replica.created - died) for replica in world.ready] == [(3, timedelta(seconds=10))]


def test_nothing_that_serves_is_ended_while_what_follows_cannot_be_made() -> None:
    world = settled(parallelism=TWO_RANKS)
    world.rank_dies(world.name_of(0, 1), 1)
    replicas = tuple(world.replicas.values())
    assert plan_engine(world.engine, world.spec, replicas, hold=True, now=world.now).steps == ()


def test_restarts_in_place_count_in_the_one_budget() -> None:
    world = settled(parallelism=TWO_RANKS, restart=api.Restart(max_restarts=1))
    world.rank_dies(world.name_of(0, 1), 1, state="Restarting")
    assert published(world)["restarts"] == 1
    world.now += timedelta(seconds=60)
    world.kill(world.name_of(0, 1))
    world.settle()
    assert [verdict.reason for verdict in world.plans()[0].waiting] == [reasons.RESTART_BUDGET_SPENT]
    assert [replica.is_live for replica in world.replicas.values()] == [False]


def test_a_successor_knows_in_which_pod_a_rank_was_restarted_in_place() -> None:
    world = settled(parallelism=TWO_RANKS)
    member = world.live[0].members[0].name
    world.rank_dies(world.name_of(0, 1), 1, state="Restarting")
    world.kill(world.name_of(0, 1))
    world.settle()
    assert [failure.member for failure in world.live[0].spec.failures] == [member, member]


def test_two_processes_of_a_rank_that_restarted_in_place_shorten_no_delay() -> None:
    world = settled(parallelism=TWO_RANKS)
    world.kill(world.name_of(0, 1))
    world.settle()
    world.rank_dies(world.name_of(0, 2), 1, state="Restarting")
    (row,) = world.live[0].rows
    worker = msgspec.structs.replace(row.failures[0], role="worker", pid=18)
    world.change(world.live[0], rows=(msgspec.structs.replace(row, failures=(*row.failures, worker)),))
    world.now += timedelta(seconds=60)
    world.kill(world.name_of(0, 2))
    world.one_pass()
    assert world.plans()[0].look_again_seconds == 10


def test_scaling_down_ends_a_replica_with_a_dead_rank_before_a_whole_one_but_after_one_that_does_not_serve() -> None:
    world = settled(parallelism=TWO_RANKS, replicas=3, restart=api.Restart(max_restarts=0))
    world.rank_dies(world.name_of(0, 1), 1)
    world.change_member(world.live[1].members[0].name, is_ready=False)
    for replicas, ended in ((2, [1]), (1, [0, 1])):
        world.spec = msgspec.structs.replace(world.spec, replicas=replicas)
        assert sorted(world.replicas[end.name].spec.index for end in ends(world)) == ended


def test_a_rollout_replaces_a_replica_with_a_dead_rank_first_and_keeps_enough_serving() -> None:
    world = settled(parallelism=TWO_RANKS, replicas=3, restart=api.Restart(max_restarts=0))
    world.rank_dies(world.name_of(0, 1), 1)
    world.spec = msgspec.structs.replace(world.spec, model=api.Model(uri="hf://a/c"))
    assert [(end.name, end.reason) for end in ends(world)] == [(world.name_of(0, 1), reasons.ROLLOUT)]


# what is said


@pytest.mark.parametrize(("state", "reason"), [("Restarting", reasons.RANK_RESTARTING), ("Dead", reasons.RANK_DEAD)])
def test_a_rank_that_does_not_serve_is_named_with_its_cause_while_the_others_are_available(state: str, reason: str) -> None:
    world = settled(parallelism=TWO_RANKS)
    name = world.name_of(0, 1)
    assert "lastFailure" not in published(world)
    world.rank_dies(name, 1, state=state)
    status = published(world)
    expected = f"rank 1 of {name} is {state}: engine-core rank 1 of {world.live[0].members[0].name}: signal 9"
    assert condition(status, "Ready") == ("False", reason, f"1 of 1 replicas serve: {expected}")
    assert condition(status, "Available") == ("True", reasons.SOME_REPLICAS_SERVE, "1 of 1 replicas serve")
    assert status["readyReplicas"] == 0
    assert (status["lastFailure"]["rank"], status["lastFailure"]["replica"]) == (1, name)
    ready = replica_status(world.live[0], problems=(), now=world.now)["conditions"][0]
    assert (ready["status"], ready["reason"], ready["message"]) == ("False", reason, expected)


def test_a_rank_that_came_back_leaves_its_failure_and_its_count() -> None:
    world = settled(parallelism=TWO_RANKS)
    world.rank_dies(world.name_of(0, 1), 1, state="Restarting")
    row = world.live[0].rows[0]
    back = tuple(msgspec.structs.replace(part, state="Serving") for part in row.ranks)
    world.change(world.live[0], rows=(msgspec.structs.replace(row, ranks=back),))
    status = published(world)
    assert condition(status, "Ready")[0] == "True"
    assert (status["restarts"], status["lastFailure"]["incarnation"]) == (1, 1)


def test_a_rank_that_no_longer_fits_stops_readably_and_the_others_serve_on() -> None:
    world = settled(parallelism=TWO_RANKS)
    world.rank_dies(world.name_of(0, 1), 1, class_="ContextTooSmall")
    status = published(world)
    assert condition(status, "ContextFit")[:2] == ("False", reasons.CONTEXT_TOO_SMALL)
    assert condition(status, "Available")[0] == "True"
    assert world.plans()[1] == ()


def announce(world: World, index: int, *lengths: int) -> None:
    replica = world.live[index]
    ranks = tuple(
        RankRow(rank=rank, incarnation=1, state="Serving", max_context_length=length) for rank, length in enumerate(lengths)
    )
    world.change(replica, rows=(msgspec.structs.replace(replica.rows[0], ranks=ranks),))


def test_the_rank_with_the_smallest_fit_limits_its_replica_and_the_engine() -> None:
    world = settled(parallelism=TWO_RANKS, replicas=2)
    announce(world, 0, 4096, 8192)
    announce(world, 1, 8192, 2048)
    status = published(world)
    assert status["maxContextLength"] == 2048
    assert status["contextLimitedBy"] == {"replica": world.name_of(1, 1), "rank": 1}


def test_removing_the_replica_with_the_smallest_fit_raises_the_value_once_all_are_ready() -> None:
    world = settled(parallelism=TWO_RANKS, replicas=2)
    announce(world, 0, 4096, 8192)
    announce(world, 1, 8192, 2048)
    assert published(world)["maxContextLength"] == 2048
    world.spec = msgspec.structs.replace(world.spec, replicas=3)
    world.one_pass()
    assert published(world)["maxContextLength"] == 2048, "not all are ready"
    world.spec = msgspec.structs.replace(world.spec, replicas=1)
    world.settle()
    status = published(world)
    assert status["maxContextLength"] == 4096
    assert status["contextLimitedBy"] == {"replica": world.name_of(0, 1), "rank": 0}


def test_a_replica_that_serves_with_some_ranks_can_only_lower_the_value() -> None:
    world = settled(parallelism=TWO_RANKS, restart=api.Restart(max_restarts=0))
    announce(world, 0, 8192, 2048)
    assert published(world)["maxContextLength"] == 2048
    world.rank_dies(world.name_of(0, 1), 1)
    assert published(world)["maxContextLength"] == 2048
    announce(world, 0, 1024)
    assert published(world)["maxContextLength"] == 1024


# rows put together

parts = st.builds(
    RankRow,
    rank=st.integers(0, 3),
    incarnation=st.integers(1, 3),
    state=st.sampled_from(["Serving", "Starting", "Draining", "Restarting", "Dead", "AWordOfTomorrow"]),
    max_context_length=st.one_of(st.none(), st.integers(1, 100)),
)


@given(st.lists(st.builds(Row, name=st.just("m"), ranks=st.lists(parts, max_size=4).map(tuple)), max_size=4))
def test_a_rank_is_as_good_as_the_worst_of_its_newest_parts(rows: list[Row]) -> None:
    told = [part for row in rows for part in row.ranks]
    found = merged(rows)
    assert [rank.rank for rank in found] == sorted({part.rank for part in told})
    for rank in found:
        newest = [part for part in told if part.rank == rank.rank and part.incarnation == rank.incarnation]
        assert rank.incarnation == max(part.incarnation for part in told if part.rank == rank.rank)
        assert (rank.state == "Serving") == all(part.state == "Serving" for part in newest)
        assert (rank.state == "Dead") == any(part.state == "Dead" for part in newest)
        lengths = [part.max_context_length for part in newest if part.max_context_length is not None]
        assert rank.max_context_length == min(lengths, default=None)


def test_a_dead_rank_is_told_at_once_and_ends_its_replica_when_its_cause_is_known() -> None:
    """A rank is Dead before its processes are reaped, so its row may hold only the death that was answered before."""
    world = settled(parallelism=TWO_RANKS)
    name = world.name_of(0, 1)
    for state in ("Restarting", "Dead"):
        world.rank_dies(name, 1, state=state)
    whole = world.live[0].rows[0]
    for failures in ((), whole.failures[:1]):
        world.change(world.live[0], rows=(msgspec.structs.replace(whole, failures=failures),))
        assert ends(world) == []
        assert condition(published(world), "Ready")[1] == reasons.RANK_DEAD
    world.change(world.live[0], rows=(whole,))
    (end,) = ends(world)
    assert end.end.failure is not None
    assert end.end.failure.incarnation == 2


def test_a_dead_rank_whose_cause_is_never_told_ends_its_replica_all_the_same() -> None:
    """One that the kernel does not let go has no record in the row."""
    world = settled(parallelism=TWO_RANKS)
    world.rank_dies(world.name_of(0, 1), 1, state="Restarting")
    world.now += timedelta(seconds=1000)
    world.rank_dies(world.name_of(0, 1), 1, told=False)
    assert ends(world) == []
    assert world.plans()[0].look_again_seconds == 120
    world.now += timedelta(seconds=120)
    (end,) = ends(world)
    assert end.end.failure is not None
    assert (end.end.failure.class_, end.end.failure.rank, end.end.failure.incarnation) == ("Unknown", 1, 2)
    world.settle()
    assert [len(replica.spec.failures) for replica in world.ready] == [2]


def test_the_age_of_a_row_is_that_of_its_monitors_last_change() -> None:
    def changed(manager: str, subresource: str, hour: int) -> dict[str, Any]:
        return {"manager": manager, "subresource": subresource, "time": f"2026-01-01T0{hour}:00:00Z"}

    owner = {"controller": True, "uid": "engine-uid"}
    raw = {
        "metadata": {
            "name": "e-0",
            "uid": "u",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [owner],
            "managedFields": [changed("p", "status", 3), changed("operator", "status", 4), changed("p", "", 5)],
        },
        "spec": {"index": 0, "epoch": 1, "engine": {"model": {"uri": "hf://a/b"}}},
        "status": {"members": [{"name": "p", "uid": "v"}, {"name": "q", "uid": "w"}]},
    }
    (replica,) = observe.replicas(engine_uid="engine-uid", replica_objects=[raw], pods=[])
    assert [row.written for row in replica.rows] == [replica.created + timedelta(hours=3), None]


def test_nothing_moves_while_a_replica_with_a_dead_rank_of_unknown_cause_waits_for_a_person() -> None:
    world = settled(parallelism=TWO_RANKS, restart=api.Restart(max_restarts=0))
    world.rank_dies(world.name_of(0, 1), 1, told=False)
    world.now += timedelta(seconds=120)
    before = published(world)
    assert condition(before, "Stalled")[:2] == ("True", reasons.RESTART_BUDGET_SPENT)
    world.now += timedelta(seconds=600)
    assert (published(world), world.plans()[0].look_again_seconds) == (before, None)


@pytest.mark.parametrize("vanished", [False, True])
def test_a_death_that_was_answered_in_place_is_not_taken_for_the_one_that_ended_the_pod(vanished: bool) -> None:
    world = settled()
    world.rank_dies(world.name_of(0, 1), 0, state="Restarting")
    row = msgspec.structs.replace(world.live[0].rows[0], state="Failed")
    world.change(world.live[0], rows=(row,))
    assert ends(world) == [], "the launcher is about to tell of what"
    if vanished:
        world.vanish(world.name_of(0, 1))
        assert [end.reason for end in ends(world)] == [reasons.MEMBER_LOST]
        return
    world.rank_dies(world.name_of(0, 1), 0)
    (end,) = ends(world)
    assert end.end.failure is not None
    assert end.end.failure.incarnation == 2
    world.settle()
    assert [len(replica.spec.failures) for replica in world.ready] == [2]
