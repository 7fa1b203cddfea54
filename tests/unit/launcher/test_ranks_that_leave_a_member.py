"""A member of a replica whose ranks leave, one after the other, while the leader serves."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine_story import CLEAN, KILLED, killed, ready, reported, started, told
from enginehouse_engine.launcher import messages, remote_workers
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.member_lifecycle import MemberLifecycle
from enginehouse_engine.launcher.member_messages import Orders, RankOrder, Report, WorkerState
from enginehouse_engine.launcher.messages import Death
from enginehouse_engine.launcher.phase import STOP_SECONDS, Phase
from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.rank_set import RankSet
from enginehouse_engine.launcher.termination import Exit
from enginehouse_engine.launcher.unit import UnitState
from enginehouse_engine.launcher.units import engine_units, member_units

SHAPE = {"ranks": 4, "workers": 1, "workers_each": 2}
"""Member 1 has the ranks 2 and 3."""


def orders(*ranks: RankOrder, state: str = "Serving") -> Orders:
    return Orders(state=state, ranks=ranks)


@pytest.fixture
def life() -> MemberLifecycle:
    """Serving."""
    life = MemberLifecycle(
        units=member_units(member=1, **SHAPE),
        ranks=RankSet(4, workers=1, workers_each=2),
        leader="leader",
        name="member 1 of 2",
        number=1,
        replica_uid="uid",
        startup_timeout_seconds=100,
        drain_timeout_seconds=60,
        hang_stall_seconds=120,
        now=0.0,
    )
    life.ordered(orders(RankOrder(2, "Starting"), RankOrder(3, "Starting"), state="Starting"))
    life.model_found()
    for number, worker in enumerate(workers(life)):
        life.started(worker, pid=100 + number)
        life.registered(worker)
    life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Serving")))
    assert life.phase is Phase.SERVING
    return life


def workers(life: MemberLifecycle) -> list[Process]:
    return [process for unit in life.units for process in unit.processes]


def test_a_rank_leaves_and_the_other_goes_on(life: MemberLifecycle) -> None:
    stays, leaves = workers(life)
    actions = life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Draining", end="stop")))
    assert told(actions, "stop") == [leaves]
    life.pipe_closed(leaves, bye=True)
    assert [death["planned"] for death in reported(life.exited(leaves, exit=CLEAN, out_of_memory=False))] == [True]
    assert killed(life.clock(1000.0)) == []
    assert (life.phase, life.cause) == (Phase.SERVING, None)
    life.asked_to_stop()
    assert life.phase is Phase.DRAINING
    assert life.report().leaving, f"{stays} is served by the leader"


def test_a_rank_that_does_not_leave_in_time_is_killed_alone(life: MemberLifecycle) -> None:
    _, leaves = workers(life)
    life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Draining", end="stop")))
    life.clock(STOP_SECONDS)
    assert killed(life.clock(2 * STOP_SECONDS)) == [leaves]
    life.exited(leaves, exit=KILLED, out_of_memory=False)
    assert (life.phase, life.cause) == (Phase.SERVING, None)


def test_a_member_without_ranks_waits_for_its_pods_end_and_then_does_not_wait_for_the_leader(life: MemberLifecycle) -> None:
    life.ordered(orders(RankOrder(2, "Draining", end="stop"), RankOrder(3, "Draining", end="stop")))
    for worker in workers(life):
        life.pipe_closed(worker, bye=True)
        life.exited(worker, exit=CLEAN, out_of_memory=False)
    life.ordered(orders())
    assert (life.phase, life.units, life.deadline) == (Phase.SERVING, (), math.inf), "it has nothing, and sleeps"
    life.asked_to_stop()
    assert (life.phase, life.cause) == (Phase.ENDED, None)
    assert not life.report().leaving


def test_a_member_that_lost_a_rank_and_whose_last_one_left_ends_without_a_failure(life: MemberLifecycle) -> None:
    dies, leaves = workers(life)
    life.pipe_closed(dies, bye=False)
    assert [death["planned"] for death in reported(life.exited(dies, exit=KILLED, out_of_memory=False))] == [False]
    life.ordered(orders(RankOrder(2, "Dead", end="kill"), RankOrder(3, "Draining", end="stop")))
    life.pipe_closed(leaves, bye=True)
    life.exited(leaves, exit=CLEAN, out_of_memory=False)
    assert life.phase is Phase.SERVING
    life.asked_to_stop()
    assert (life.phase, life.cause) == (Phase.ENDED, None), "it served on without that rank, whose death is told"


@pytest.mark.parametrize("at_once", [False, True])
def test_a_rank_that_died_left_and_is_back_is_not_to_blame_for_a_later_end(life: MemberLifecycle, at_once: bool) -> None:
    first, other = workers(life)
    life.pipe_closed(first, bye=False)
    life.exited(first, exit=KILLED, out_of_memory=False)
    assert life.cause is not None
    if not at_once:
        life.ordered(orders(RankOrder(3, "Serving")))
    (again,) = started(life.ordered(orders(RankOrder(2, "Starting", incarnation=2), RankOrder(3, "Serving"))))
    life.started(again, pid=300)
    life.registered(again)
    life.ordered(orders(RankOrder(2, "Serving", incarnation=2), RankOrder(3, "Serving")))
    for process in (other, again):
        life.pipe_closed(process, bye=False)
        life.exited(process, exit=Exit(signal=11), out_of_memory=False)
    assert life.phase is Phase.ENDED
    assert life.cause is not None
    assert life.cause.process == other, "the first of those that it could not do without"


def reported_by(member: MemberLifecycle) -> list[tuple[int, int]]:
    return [(worker.rank, worker.incarnation) for worker in member.report().workers]


def test_what_the_leader_does_not_speak_of_any_more_is_forgotten_when_nothing_of_it_is_left(life: MemberLifecycle) -> None:
    _, leaves = workers(life)
    life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Draining", end="stop")))
    life.ordered(orders(RankOrder(2, "Serving")))
    assert reported_by(life) == [(2, 1), (3, 1)], "it lives"
    life.pipe_closed(leaves, bye=True)
    life.exited(leaves, exit=CLEAN, out_of_memory=False)
    life.ordered(orders(RankOrder(2, "Serving")))
    assert reported_by(life) == [(2, 1)]
    assert [rank["rank"] for rank in life.state()["ranks"]] == [2]


def test_a_rank_comes_back_to_its_member_with_the_next_incarnation_when_nothing_of_the_last_is_left(life: MemberLifecycle) -> None:
    _, leaves = workers(life)
    life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Draining", end="stop")))
    assert started(life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Starting", incarnation=2)))) == []
    life.pipe_closed(leaves, bye=True)
    life.exited(leaves, exit=CLEAN, out_of_memory=False)
    (again,) = started(life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Starting", incarnation=2))))
    assert (again.rank, again.incarnation, again.member) == (3, 2, 1)
    life.started(again, pid=300)
    life.registered(again)
    assert reported_by(life) == [(2, 1), (3, 2)]
    life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Serving", incarnation=2)))
    assert life.units[1].lives


def test_a_rank_that_joins_gets_its_part_in_a_member_that_did_not_know_it(life: MemberLifecycle) -> None:
    life.ranks.workers_each = 3
    (joins,) = started(life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Serving"), RankOrder(4, "Starting"))))
    assert (joins.rank, joins.index) == (4, 0)


def test_a_rank_that_leaves_before_it_served_or_too_late_is_killed_and_nobody_failed(life: MemberLifecycle) -> None:
    _, leaves = workers(life)
    assert killed(life.ordered(orders(RankOrder(2, "Serving"), RankOrder(3, "Draining", end="kill")))) == [leaves]
    life.exited(leaves, exit=KILLED, out_of_memory=False)
    life.ordered(orders(RankOrder(2, "Draining", end="kill")))
    assert (life.phase, life.cause) == (Phase.SERVING, None)


def test_a_rank_that_is_taken_back_while_the_engine_starts_takes_nobody_of_its_member_along() -> None:
    common: dict[str, Any] = {
        "replica_uid": "uid",
        "startup_timeout_seconds": 100,
        "drain_timeout_seconds": 60,
        "hang_stall_seconds": 120,
        "now": 0.0,
    }
    leader = Lifecycle(units=engine_units(api_servers=1, **SHAPE), ranks=RankSet(4, workers=1, workers_each=2), **common)
    leader.model_found()
    ranks = RankSet(4, workers=1, workers_each=2)
    member = MemberLifecycle(
        units=member_units(member=1, **SHAPE), ranks=ranks, leader="leader", name="member 1 of 2", number=1, **common
    )
    member.ordered(remote_workers.orders(leader, 1))
    member.model_found()
    stays, leaves = workers(member)
    for number, worker in enumerate((stays, leaves)):
        member.started(worker, pid=100 + number)
        member.registered(worker)
    remote_workers.reported(leader, 1, member.report())
    leader.resized(3)
    assert leader.phase is Phase.STARTING
    assert killed(member.ordered(remote_workers.orders(leader, 1))) == [leaves]
    member.exited(leaves, exit=KILLED, out_of_memory=False)
    remote_workers.reported(leader, 1, member.report())
    member.ordered(remote_workers.orders(leader, 1))
    assert reported_by(member) == [(2, 1)]
    assert (member.phase, member.cause, leader.phase, leader.cause) == (Phase.STARTING, None, Phase.STARTING, None)


def test_the_leader_has_workers_of_a_rank_that_leaves_stop_after_their_core() -> None:
    leader = Lifecycle(
        units=engine_units(api_servers=1, **SHAPE),
        ranks=RankSet(4, workers=1, workers_each=2),
        replica_uid="uid",
        startup_timeout_seconds=100,
        drain_timeout_seconds=60,
        hang_stall_seconds=120,
        now=0.0,
    )
    leader.begin()
    leader.model_found()
    for number, process in enumerate(process for unit in leader.units for process in unit.processes):
        leader.started(process, pid=number)
        leader.registered(process)
    server, core = leader.units[0].processes[0], leader.units[4].processes[0]
    leader.said(server, ready(0, 1, 2, 3))
    leader.resized(3)

    def order() -> str:
        return remote_workers.orders(leader, 1).ranks[-1].end

    assert order() == ""
    assert told(leader.said(server, messages.RankDrained(3, 1)), "stop") == [core]
    assert order() == ""
    leader.pipe_closed(core, bye=True)
    leader.exited(core, exit=CLEAN, out_of_memory=False)
    assert order() == "stop"
    exit = WorkerState(
        rank=3, index=0, pid=8, registered=True, stage="", exit=Death(kind="ExitCode", message="exited", exit_code=0)
    )
    for _ in range(2):
        remote_workers.reported(leader, 1, Report(leaving=False, workers=(exit,)))
        assert [order.rank for order in remote_workers.orders(leader, 1).ranks] == [2], "said again it is nobody's"
    leader.resized(4)
    remote_workers.reported(leader, 1, Report(leaving=False, workers=(exit,)))
    assert (leader.units[4].incarnation, leader.units[4].seen) == (2, {})


@pytest.mark.parametrize(("data", "phase"), [(4, Phase.STOPPING), (2, Phase.STARTING)])
def test_only_a_member_that_holds_something_has_the_replica_end_with_it(data: int, phase: Phase) -> None:
    units = engine_units(api_servers=1, ranks=data, workers=1, workers_each=2)
    leader = Lifecycle(
        units=units,
        ranks=RankSet(data, workers=1, workers_each=2),
        replica_uid="uid",
        startup_timeout_seconds=100,
        drain_timeout_seconds=60,
        hang_stall_seconds=120,
        now=0.0,
    )
    leader.begin()
    leader.model_found()
    for process in (process for unit in units for process in unit.processes if process.member == 0):
        leader.started(process, pid=1)
    remote_workers.reported(leader, 1, Report(leaving=True, workers=()))
    assert leader.phase is phase


@pytest.mark.parametrize("how", ["leaving", "lost"])
@pytest.mark.parametrize(
    ("state", "leaves", "goes_on"),
    [(UnitState.PENDING, False, True), (UnitState.DRAINING, True, True), (UnitState.STARTING, False, False)],
)
def test_a_member_that_goes_before_or_after_a_rank_has_its_place_in_it_ends_nothing(
    how: str, state: UnitState, leaves: bool, goes_on: bool
) -> None:
    """Another one of its number takes its place, or it is to go anyway, and holds out as long as its rank drains."""
    units = engine_units(api_servers=1, ranks=2, workers=1, workers_each=1)
    leader = Lifecycle(
        units=units,
        ranks=RankSet(2, workers=1, workers_each=1),
        replica_uid="uid",
        startup_timeout_seconds=100,
        drain_timeout_seconds=60,
        hang_stall_seconds=120,
        now=0.0,
    )
    leader.begin()
    leader.model_found()
    units[-1].state, units[-1].leaves = state, leaves
    if how == "leaving":
        remote_workers.reported(leader, 1, Report(leaving=True, workers=()))
    else:
        remote_workers.lost(leader, 1, reason="cut")
    assert (leader.phase is Phase.STARTING) is goes_on
