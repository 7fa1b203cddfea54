"""API servers in rows: one that is dead is to its replica what a dead rank is; with the last one nothing answers any more."""

from __future__ import annotations

from datetime import timedelta

import pytest
from world import World, ends, settled

from enginehouse_operator import api, reasons, steps
from enginehouse_operator.status import engine_status, replica_status


def leaves(world: World) -> list[str]:
    return [step.name for step in world.plans()[1] if isinstance(step, steps.LeaveService)]


def ready(world: World) -> tuple[str, str, str]:
    plan, replicas = world.plans()[0], tuple(world.replicas.values())
    status = engine_status(world.engine, world.spec, replicas, plan=plan, problems=(), endpoint="", now=world.now)
    found = status["conditions"][0]
    return found["status"], found["reason"], found["message"]


def test_a_replica_that_lost_an_api_server_serves_on_and_is_replaced_when_enough_others_serve() -> None:
    world = settled(api_servers=2, replicas=2)
    world.change_member(world.live[1].members[0].name, is_ready=False)
    world.api_server_dies(world.name_of(0, 1), 1)
    assert (world.live[0].is_serving, world.live[0].is_ready) == (True, False)
    assert ends(world) == [], "it is the only one that serves"
    status, reason, words = ready(world)
    assert (status, reason) == ("False", reasons.API_SERVER_DEAD)
    assert f"API server 1 of {world.name_of(0, 1)} is Dead: api-server 1 of " in words
    world.change_member(world.live[1].members[0].name, is_ready=True)
    (end,) = ends(world)
    assert end.end.failure is not None
    assert (end.reason, end.end.failure.role, end.end.failure.index) == (reasons.API_SERVER_DEAD, "api-server", 1)
    assert "api-server 1 of" in end.message
    assert end.end.deadline == world.now + timedelta(seconds=60), "its requests drain"
    assert leaves(world) == []
    world.settle()
    assert [replica.spec.epoch for replica in world.ready] == [2, 1]


def test_with_the_last_api_server_a_replica_leaves_service_and_ends_at_once() -> None:
    world = settled(api_servers=2)
    for index in (0, 1):
        world.api_server_dies(world.name_of(0, 1), index)
    assert leaves(world) == [world.live[0].members[0].name]
    (end,) = ends(world)
    assert (end.reason, end.end.deadline) == (reasons.API_SERVER_DEAD, world.now)


def test_an_api_server_that_restarts_in_place_ends_nothing_and_counts() -> None:
    world = settled(api_servers=2, restart=api.Restart(max_restarts=1))
    world.api_server_dies(world.name_of(0, 1), 1, state="Restarting")
    assert world.plans()[1] == ()
    assert ready(world)[1] == reasons.API_SERVER_RESTARTING
    (replica,) = world.live
    found = replica_status(replica, problems=(), now=world.now)["conditions"][0]
    assert (found["status"], found["reason"]) == ("False", reasons.API_SERVER_RESTARTING)
    world.tick()
    assert ready(world)[0] == "True"
    world.now += timedelta(seconds=1000)
    world.kill(world.name_of(0, 1))
    world.settle()
    assert [verdict.reason for verdict in world.plans()[0].waiting] == [reasons.RESTART_BUDGET_SPENT]


def test_the_death_of_one_api_server_is_not_taken_for_that_of_another() -> None:
    """Both have incarnation 1; the one that restarted has 2."""
    world = settled(api_servers=2)
    world.api_server_dies(world.name_of(0, 1), 0, state="Restarting")
    world.api_server_dies(world.name_of(0, 1), 1, told=False)
    assert ends(world) == [], "of what number 1 died is not told"
    world.now += timedelta(seconds=120)
    (end,) = ends(world)
    assert end.end.failure is not None
    assert (end.end.failure.class_, end.end.failure.index) == ("Unknown", 1)


@pytest.mark.parametrize("how", ["kill", "vanish"])
def test_an_api_server_that_went_with_its_pod_is_told_as_the_pod(how: str) -> None:
    world = settled(api_servers=2)
    for index in (0, 1):
        world.api_server_dies(world.name_of(0, 1), index, told=False)
    getattr(world, how)(world.name_of(0, 1))
    assert [end.reason for end in ends(world)] == [{"kill": reasons.MEMBER_FAILED, "vanish": reasons.MEMBER_LOST}[how]]
