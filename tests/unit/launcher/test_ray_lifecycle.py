"""What the launcher decides where ranks are actors of a Ray cluster that it started itself."""

from __future__ import annotations

import dataclasses

import pytest

from engine_story import CLEAN, KILLED, Story, killed, reported, started, told
from enginehouse_engine.launcher import messages, ray_unit, termination
from enginehouse_engine.launcher.actions import StartRay
from enginehouse_engine.launcher.phase import Phase
from enginehouse_engine.launcher.process import RAY_START, WORKER, Process
from enginehouse_engine.launcher.ray_unit import MANAGER
from enginehouse_engine.launcher.termination import Cause
from enginehouse_engine.launcher.units import engine_units

GCS, RAYLET = ray_unit.adopted(ray_unit.ray_unit(0))


def story(**shape: int) -> Story:
    return Story(ray=True, workers=2, **shape)  # type: ignore[arg-type]  # the other fields are numbers


def test_ray_runs_before_the_manager_and_the_manager_reaches_it_before_ranks_and_api_servers_start() -> None:
    life = (one := story()).life
    assert life.model_found() == [StartRay()]
    assert started(life.ray_runs({GCS: 1, RAYLET: 2})) == [MANAGER]
    assert life.started(MANAGER, pid=3) == []
    life.registered(MANAGER)
    assert started(life.said(MANAGER, messages.Stage("import"))) == []
    assert started(life.said(MANAGER, messages.Stage("serve"))) == one.all


def test_a_ray_that_does_not_come_up_is_what_a_start_up_waited_for() -> None:
    life = story().life
    life.model_found()
    life.started(Process(role=RAY_START, rank=None, index=0, incarnation=1), pid=1)
    life.clock(100.0)
    assert life.cause is not None
    assert life.cause.message == "not ready after 100 s, waiting for: Ray to start in this pod"


def test_a_manager_that_does_not_reach_ray_is_what_a_start_up_waited_for() -> None:
    life = story().life
    life.model_found()
    life.ray_runs({GCS: 1, RAYLET: 2})
    life.started(MANAGER, pid=3)
    life.registered(MANAGER)
    life.said(MANAGER, messages.Stage("import"))
    life.clock(100.0)
    assert life.cause is not None
    assert life.cause.message == "not ready after 100 s, waiting for: actor manager to reach Ray (pid 3, stage import)"


@pytest.mark.parametrize("victim", [GCS, RAYLET, MANAGER], ids=str)
def test_the_engine_ends_with_whatever_of_ray_dies_and_its_actors_deaths_are_no_other_ones(victim: Process) -> None:
    one = story(ranks=2).serve()
    actions = one.exit(victim, KILLED)
    assert one.life.state()["state"] == "Failed"
    assert set(killed(actions)) == {*one.cores, *one.workers, GCS, RAYLET, MANAGER}
    assert told(actions, "stop") == one.servers
    deaths = reported(actions)
    for actor in (*one.cores, *one.workers):
        one.life.was_dying(actor)  # its raylet took it along before the launcher could
        deaths += reported(one.exit(actor, KILLED))
    assert [death["role"] for death in deaths if not death["planned"]] == [victim.role]
    for process in ({GCS, RAYLET, MANAGER} - {victim}) | set(one.servers):
        one.exit(process, KILLED if process not in one.servers else CLEAN)
    assert one.life.phase is Phase.ENDED
    assert one.life.cause is not None
    assert (one.life.cause.kind, one.life.cause.process) == (termination.SIGNAL, victim)


def test_ray_is_there_until_the_last_actor_has_ended_in_order() -> None:
    one = story().serve()
    assert told(one.life.asked_to_stop(), "drain") == one.servers
    one.life.said(one.servers[0], messages.Drained())
    killed_early = [process for process in one.servers + one.cores for process in killed(one.exit(process, CLEAN, bye=True))]
    killed_early += killed(one.exit(one.workers[0], CLEAN, bye=True))
    assert killed_early == []
    assert set(killed(one.exit(one.workers[1], CLEAN, bye=True))) == {GCS, RAYLET, MANAGER}
    for process in (GCS, RAYLET, MANAGER):
        assert [death["planned"] for death in reported(one.exit(process, KILLED))] == [True]
    assert (one.life.phase, one.life.cause) == (Phase.ENDED, None)


def test_an_actor_may_register_while_it_is_wanted_and_only_once() -> None:
    one = story()
    one.life.model_found()
    one.start_ray()
    worker = one.workers[0]
    assert one.life.reason_to_refuse(worker, pid=7) == ""
    one.life.started(worker, pid=7)
    one.life.registered(worker)
    assert "is registered already" in one.life.reason_to_refuse(worker, pid=8)
    assert "has not started" in one.life.reason_to_refuse(dataclasses.replace(worker, incarnation=2), pid=8)
    assert "has not started" in one.life.reason_to_refuse(one.servers[0], pid=9)
    one.exit(worker, KILLED)
    assert "is not wanted any more" in one.life.reason_to_refuse(one.workers[1], pid=9)


def test_an_actor_is_known_with_its_member_although_it_does_not_say_it() -> None:
    life = Story().life
    life.units = engine_units(api_servers=1, ranks=2, workers=1, workers_each=1)
    said = Process(role=WORKER, rank=1, index=0, incarnation=1)
    assert (said.member, life.known(said).member) == (0, 1)


def test_a_rank_whose_actor_dies_is_started_again_when_all_of_it_are_gone() -> None:
    one = story(ranks=2).serve()
    actions = one.exit(one.workers[0], KILLED)
    assert set(killed(actions)) == {one.cores[0], *one.workers[:2]}
    assert started(one.exit(one.cores[0], KILLED)) == []
    again = started(one.exit(one.workers[1], KILLED))
    assert {process.incarnation for process in again} == {2}
    assert all(one.life.reason_to_refuse(process, pid=50) == "" for process in again)
    assert one.life.phase is Phase.SERVING


def test_an_end_while_ray_starts_leaves_nothing_of_it() -> None:
    life = story().life
    life.model_found()
    start = Process(role=RAY_START, rank=None, index=0, incarnation=1)
    life.started(start, pid=1)
    assert killed(life.refused(Cause(termination.EXCEPTION, "no"))) == [start]
    assert set(killed(life.ray_runs({GCS: 2, RAYLET: 3}))) == {GCS, RAYLET}
    for process in (start, GCS, RAYLET):
        life.exited(process, exit=KILLED, out_of_memory=False)
    assert life.phase is Phase.ENDED


def test_an_actor_that_is_refused_because_the_engine_ends_is_no_failure() -> None:
    one = story()
    one.life.model_found()
    one.start_ray()
    one.life.started(one.workers[0], pid=7)
    one.life.registered(one.workers[0])
    one.life.asked_to_stop()
    assert one.life.not_started(one.workers[1], reason="it exited with code 1") == []
    one.exit(one.workers[0], KILLED)
    for process in (GCS, RAYLET, MANAGER):
        one.exit(process, KILLED)
    assert (one.life.phase, one.life.cause) == (Phase.ENDED, None)


def test_a_rank_of_which_nobody_registered_in_time_is_dead_of_that() -> None:
    one = Story(ray=True, needs_places=True)
    one.life.placed({(0, 1): True})
    one.serve()
    one.life.resized(2)
    one.life.placed({(0, 1): True, (1, 1): True})
    (report,) = reported(one.life.clock(100.0))
    assert (report["class"], report["planned"], report["role"], report["rank"]) == ("StartupTimeout", False, "engine-core", 1)
    assert "engine core of rank 1 (not started)" in report["message"]
    assert (one.words(), one.life.phase) == ([(1, "Serving"), (1, "Dead")], Phase.SERVING)
