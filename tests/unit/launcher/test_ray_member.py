"""What a member's launcher decides about its part of the Ray cluster."""

from __future__ import annotations

from typing import Any

import pytest

from engine_story import CLEAN, KILLED, killed, reported, started
from enginehouse_engine.launcher import ray_unit, remote_workers, termination
from enginehouse_engine.launcher.actions import Kill, StartRay
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.member_lifecycle import MemberLifecycle
from enginehouse_engine.launcher.member_messages import Orders, RankOrder
from enginehouse_engine.launcher.phase import Phase
from enginehouse_engine.launcher.process import RAY_START, Process
from enginehouse_engine.launcher.rank_set import RankSet
from enginehouse_engine.launcher.units import engine_units, member_units

COMMON: dict[str, Any] = {
    "replica_uid": "uid",
    "startup_timeout_seconds": 100,
    "drain_timeout_seconds": 60,
    "hang_stall_seconds": 120,
    "now": 0.0,
}
SHAPE = {"ranks": 2, "workers": 1, "workers_each": 1}
START = Process(role=RAY_START, rank=None, index=0, incarnation=1)
HEAD = "10.0.0.1:6379"
(RAYLET,) = ray_unit.ray_unit(1).processes


def orders(state: str = "Starting", rank: str = "Starting", *, incarnation: int = 1, ray: str = HEAD) -> Orders:
    return Orders(state=state, ranks=(RankOrder(1, rank, incarnation),), ray=ray)


@pytest.fixture
def life() -> MemberLifecycle:
    ranks = RankSet(2, workers=1, workers_each=1)
    return MemberLifecycle(
        units=member_units(member=1, **SHAPE), ranks=ranks, ray=ray_unit.ray_unit(1), leader="l", name="member 1", **COMMON
    )


def serve(life: MemberLifecycle) -> Process:
    """Its worker."""
    life.ordered(orders())
    life.model_found()
    life.started(START, pid=1)
    (worker,) = started(life.ray_runs({RAYLET: 2}))
    life.exited(START, exit=CLEAN, out_of_memory=False)
    life.started(worker, pid=3)
    life.registered(worker)
    life.ordered(orders("Serving", "Serving"))
    assert life.phase is Phase.SERVING
    return worker


@pytest.mark.parametrize("model_first", [True, False])
def test_ray_is_started_when_the_model_is_there_and_the_head_runs(life: MemberLifecycle, model_first: bool) -> None:
    assert StartRay() not in life.ordered(orders(ray=""))
    if model_first:
        assert life.model_found() == []
        assert life.ordered(orders()) == [StartRay()]
        assert life.ordered(orders(rank="Pending")) == [], "once"
    else:
        assert life.ordered(orders()) == []
        assert life.model_found() == [StartRay()]


def test_a_ray_that_does_not_start_here_ends_this_member_in_time_and_is_named(life: MemberLifecycle) -> None:
    life.ordered(orders())
    life.clock(50.0)
    life.model_found()
    life.started(START, pid=1)
    assert killed(life.clock(149.0)) == []
    assert killed(life.clock(150.0)) == [START]
    assert life.cause is not None
    assert life.cause.message == "not ready after 100 s, waiting for: Ray to start in this pod"


def test_a_worker_is_waited_for_by_the_leader_alone(life: MemberLifecycle) -> None:
    life.ordered(orders())
    life.model_found()
    life.ray_runs({RAYLET: 2})
    assert life.clock(10_000.0) == []
    assert life.phase is Phase.STARTING


def test_the_incarnation_that_is_ordered_is_the_one_that_may_register(life: MemberLifecycle) -> None:
    life.ordered(orders(incarnation=3))
    assert [process.incarnation for unit in life.units for process in unit.processes] == [3]


def test_a_raylet_takes_its_actors_along_and_is_blamed_here_and_by_the_leader(life: MemberLifecycle) -> None:
    worker = serve(life)
    deaths = reported(life.pipe_closed(RAYLET, bye=False) + life.exited(RAYLET, exit=KILLED, out_of_memory=False))
    life.was_dying(worker)
    deaths += reported(life.pipe_closed(worker, bye=False) + life.exited(worker, exit=KILLED, out_of_memory=False))
    assert [death["role"] for death in deaths if not death["planned"]] == ["raylet"]
    assert life.phase is Phase.ENDED
    assert life.cause is not None
    assert (life.cause.kind, life.cause.message) == (termination.SIGNAL, "Ray's raylet in member 1 was killed by SIGKILL")

    units = engine_units(api_servers=1, **SHAPE)
    leader = Lifecycle(units=units, ranks=RankSet(2, workers=1, workers_each=1), **COMMON)
    leader.begin()
    leader.model_found()
    remote_workers.reported(leader, 1, life.report())
    cause = units[2].cause
    assert cause is not None
    assert cause.message == "Ray's raylet in member 1 was killed by SIGKILL"


def test_the_raylet_of_a_member_that_ends_in_order_takes_its_leave(life: MemberLifecycle) -> None:
    worker = serve(life)
    life.ordered(orders("Serving", "Draining"))
    life.ordered(Orders(state="Serving", ranks=(RankOrder(1, "Draining", end="stop"),), ray=HEAD))
    life.pipe_closed(worker, bye=True)
    life.exited(worker, exit=CLEAN, out_of_memory=False)
    assert [action for action in life.asked_to_stop() if isinstance(action, Kill)] == [Kill(RAYLET, farewell=True)]
    assert [death["planned"] for death in reported(life.exited(RAYLET, exit=CLEAN, out_of_memory=False))] == [True]
    assert (life.phase, life.cause) == (Phase.ENDED, None)
