"""What happens to a replica after it was asked to end: a planned exit costs nothing, a death meanwhile does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from world import World, engine_spec

from enginehouse_operator import api, reasons
from enginehouse_operator.failures import UNKNOWN, Failure
from enginehouse_operator.status import engine_status

TWO_RANKS = api.Parallelism(data=2)


def suspended(**changes: Any) -> World:
    """Its only replica drains."""
    world = World(engine_spec(**changes))
    world.settle()
    world.spec = msgspec.structs.replace(world.spec, suspend=True)
    world.one_pass()
    world.one_pass()
    assert world.replicas[world.name_of(0, 1)].members[0].deletion_deadline is not None
    return world


def resume(world: World) -> None:
    world.spec = msgspec.structs.replace(world.spec, suspend=False)
    world.settle()


def last_failure(world: World) -> dict[str, Any]:
    replicas = tuple(world.replicas.values())
    status = engine_status(world.engine, world.spec, replicas, plan=world.plans()[0], problems=(), endpoint="", now=world.now)
    return status.get("lastFailure", {})


def carried(world: World) -> list[tuple[int | None, int | None]]:
    (live,) = world.live
    return [(failure.rank, failure.incarnation) for failure in live.spec.failures]


def test_a_planned_exit_costs_nothing_whatever_its_monitor_saw_of_the_launcher() -> None:
    world = suspended()
    ended = world.replicas[world.name_of(0, 1)]
    killed = Failure(role="launcher", class_=UNKNOWN, message="the launcher died", detected_time=world.now)
    world.change(ended, rows=(msgspec.structs.replace(ended.rows[0], state="Failed", failures=(killed,)),))
    assert last_failure(world) == {}
    resume(world)
    assert carried(world) == []


def test_a_death_in_a_planned_drain_is_told_and_counts_against_the_index() -> None:
    world = suspended()
    world.now += timedelta(seconds=3)
    world.rank_dies(world.name_of(0, 1), 0)
    assert (last_failure(world)["signal"], last_failure(world)["replica"]) == (9, world.name_of(0, 1))
    resume(world)
    assert carried(world) == [(0, 1)]
    assert world.live[0].created == world.now, "the first successor comes at once"


def test_a_death_in_a_planned_drain_spends_the_budget() -> None:
    world = suspended(restart=api.Restart(max_restarts=0))
    world.rank_dies(world.name_of(0, 1), 0)
    resume(world)
    assert world.live == []
    assert [verdict.reason for verdict in world.plans()[0].waiting] == [reasons.RESTART_BUDGET_SPENT]


def test_all_ranks_that_die_in_one_drain_count_once_by_the_first_and_restarts_in_place_beside_it() -> None:
    world = World(engine_spec(parallelism=TWO_RANKS))
    world.settle()
    world.rank_dies(world.name_of(0, 1), 0, state="Restarting")
    world.tick()
    world.spec = msgspec.structs.replace(world.spec, suspend=True)
    world.one_pass()
    for rank in (1, 0):
        world.now += timedelta(seconds=1)
        world.rank_dies(world.name_of(0, 1), rank)
    resume(world)
    assert carried(world) == [(0, 1), (1, 1)]


@pytest.mark.parametrize("ahead_seconds", [0, 3600])
def test_a_node_whose_clock_is_ahead_delays_nothing_beyond_the_drain(ahead_seconds: int) -> None:
    world = suspended()
    here, world.now = world.now, world.now + timedelta(seconds=ahead_seconds)
    world.rank_dies(world.name_of(0, 1), 0)
    world.now = here
    resume(world)
    assert world.now - here <= timedelta(seconds=world.spec.drain.timeout_seconds)


def test_a_rank_that_dies_while_another_ones_death_drains_the_replica_is_told_too_and_counts_with_it() -> None:
    world = World(engine_spec(parallelism=TWO_RANKS))
    world.settle()
    world.rank_dies(world.name_of(0, 1), 1)
    world.one_pass()
    end = world.replicas[world.name_of(0, 1)].spec.end
    assert end is not None
    assert end.reason == reasons.RANK_DEAD
    world.now += timedelta(seconds=1)
    world.rank_dies(world.name_of(0, 1), 0)
    world.settle()
    assert carried(world) == [(1, 1)]
