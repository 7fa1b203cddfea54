"""Statuses: what is published for a given world, and that it stands still when the world does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from world import World, engine_spec, settled

from enginehouse_operator import api, reasons
from enginehouse_operator.failures import Failure
from enginehouse_operator.plan_engine import EnginePlan
from enginehouse_operator.pod_state import Problem
from enginehouse_operator.ranks import RankRow, Row
from enginehouse_operator.status import engine_status, replica_status


def published(world: World, *problems: Problem, spec: api.EngineSpec | str | None = "the world's") -> dict[str, Any]:
    """The status of a pass that did nothing; the next pass sees it."""
    read = world.spec if isinstance(spec, str) else spec
    plan = world.plans()[0] if read is not None else EnginePlan()
    replicas = tuple(world.replicas.values())
    status = engine_status(world.engine, read, replicas, plan=plan, problems=problems, endpoint="http://e", now=world.now)
    world.engine = msgspec.structs.replace(world.engine, status=status)
    return status


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {found["type"]: (found["status"], found["reason"]) for found in status["conditions"]}


def announce(world: World, index: int, length: int) -> None:
    replica = world.live[index]
    member = replica.members[0]
    rank = RankRow(rank=0, state="Serving", max_context_length=length)
    world.change(replica, rows=(Row(name=member.name, uid=member.uid, state="Serving", ranks=(rank,)),))


def test_the_first_visit_already_has_all_conditions() -> None:
    found = published(World(engine_spec()))
    assert conditions(found) == {
        "Ready": ("False", reasons.SCALING),
        "Available": ("False", reasons.NO_REPLICA_SERVES),
        "Progressing": ("True", reasons.SCALING),
        "ContextFit": ("Unknown", reasons.NOT_KNOWN),
        "Reconciling": ("True", reasons.SCALING),
    }


def test_a_settled_world_publishes_the_same_whenever_it_is_looked_at() -> None:
    world = settled(replicas=2)
    first = published(world)
    world.now += timedelta(days=1)
    assert published(world) == first
    assert conditions(first)["Ready"] == ("True", reasons.ALL_REPLICAS_SERVE)
    assert set(conditions(first)) == {"Ready", "Available", "Progressing", "ContextFit"}


def test_a_transition_time_moves_only_with_its_status() -> None:
    world = settled(replicas=2)
    first = {found["type"]: found for found in published(world)["conditions"]}
    world.now += timedelta(seconds=60)
    world.change_member(world.live[0].members[0].name, is_ready=False)
    second = {found["type"]: found for found in published(world)["conditions"]}
    assert second["Ready"]["lastTransitionTime"] > first["Ready"]["lastTransitionTime"]
    assert second["Available"]["lastTransitionTime"] == first["Available"]["lastTransitionTime"]
    assert second["Available"]["message"] == "1 of 2 replicas serve"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"suspend": True}, reasons.SUSPENDED), ({"replicas": 0}, reasons.ZERO_REPLICAS)],
)
def test_nothing_wanted_is_ready_with_that_reason(changes: dict[str, Any], reason: str) -> None:
    world = settled()
    world.spec = engine_spec(**changes)
    world.settle()
    assert conditions(published(world))["Ready"] == ("True", reason)
    assert conditions(published(world))["Available"] == ("False", reasons.NO_REPLICA_SERVES)


def test_a_rollout_is_not_ready_before_all_serve_from_the_new_spec() -> None:
    world = settled(replicas=2)
    world.spec = engine_spec(replicas=2, model=api.Model(uri="hf://a/c"))
    found = published(world)
    assert conditions(found)["Ready"] == ("False", reasons.ROLLING_OUT)
    assert found["updatedReplicas"] == 0
    assert found["readyReplicas"] == 2


def test_a_problem_of_a_pod_is_told_and_is_reconciling_not_stalled() -> None:
    world = World(engine_spec())
    world.one_pass()
    world.one_pass()
    problem = Problem(reason=reasons.UNSCHEDULABLE, message="no node takes it")
    world.change_member(world.live[0].members[0].name, problem=problem)
    found = published(world)
    assert conditions(found)["Ready"] == ("False", reasons.UNSCHEDULABLE)
    assert "no node takes it" in found["conditions"][0]["message"]
    assert "Stalled" not in conditions(found)
    assert conditions(found)["Reconciling"][0] == "True"


def test_a_problem_that_wants_a_person_stalls_and_is_not_reconciling() -> None:
    world = World(engine_spec())
    found = published(world, Problem(reason=reasons.INVALID_SPEC, message="m", wants_person=True), spec=None)
    assert conditions(found)["Stalled"] == ("True", reasons.INVALID_SPEC)
    assert conditions(found)["Ready"] == ("False", reasons.INVALID_SPEC)
    assert conditions(found)["Progressing"] == ("False", reasons.INVALID_SPEC)
    assert "Reconciling" not in conditions(found)


def test_a_spec_that_can_no_longer_be_read_keeps_what_is_known() -> None:
    world = settled(replicas=2)
    announce(world, 0, 100)
    before = published(world)
    found = published(world, Problem(reason=reasons.INVALID_SPEC, message="m", wants_person=True), spec=None)
    for key in ("endpoint", "currentRevision", "maxContextLength", "readyReplicas", "updatedReplicas"):
        assert found[key] == before[key]
    assert conditions(found)["Available"] == ("True", reasons.SOME_REPLICAS_SERVE)


def test_the_context_length_is_the_minimum_while_all_are_ready_and_otherwise_only_falls() -> None:
    world = settled(replicas=2)
    announce(world, 0, 100)
    announce(world, 1, 50)
    assert published(world)["maxContextLength"] == 50
    world.change_member(world.live[1].members[0].name, is_ready=False)
    found = published(world)
    assert found["maxContextLength"] == 50, "the shorter one is away, and may come back"
    assert found["contextLimitedBy"] == {"replica": world.live[1].name, "rank": 0}
    announce(world, 0, 40)
    assert published(world)["maxContextLength"] == 40
    announce(world, 0, 100)
    announce(world, 1, 80)
    world.change_member(world.live[1].members[0].name, is_ready=True)
    assert published(world)["maxContextLength"] == 80
    assert conditions(published(world))["ContextFit"] == ("True", reasons.FITS)


def test_of_two_that_limit_equally_the_lower_index_is_named() -> None:
    world = settled(replicas=2)
    announce(world, 0, 50)
    announce(world, 1, 50)
    assert published(world)["contextLimitedBy"] == {"replica": world.live[0].name, "rank": 0}


def test_the_newest_failure_is_published_and_stays_when_its_replica_is_gone() -> None:
    world = settled()
    name = world.name_of(0, 1)
    world.kill(name)
    world.one_pass()
    found = published(world)
    assert found["lastFailure"]["replica"] == name
    assert found["lastFailure"]["class"] == "Signal"
    assert "replicaUID" not in found["lastFailure"]
    world.settle()
    assert name not in world.replicas
    assert published(world)["restarts"] == 1
    world.now += timedelta(days=1)
    world.spec = engine_spec(model=api.Model(uri="hf://a/c"))
    world.settle()
    after = published(world)
    assert after["lastFailure"] == found["lastFailure"]
    assert after["restarts"] == 0


def test_a_spent_budget_is_told_with_the_way_out_and_a_bad_annotation_is_told_too() -> None:
    world = settled(restart=api.Restart(max_restarts=0))
    world.kill(world.name_of(0, 1))
    world.settle()
    world.engine = msgspec.structs.replace(world.engine, resume_after_is_bad=True)
    stalled = next(found for found in published(world)["conditions"] if found["type"] == "Stalled")
    assert stalled["reason"] == reasons.RESTART_BUDGET_SPENT
    assert "enginehouse.dev/resume-after=" in stalled["message"]
    assert "is ignored" in stalled["message"]


def test_a_replica_says_what_it_waits_for_and_how_it_ended() -> None:
    world = World(engine_spec())
    world.one_pass()
    ready, ended = replica_status(world.live[0], problems=(), now=world.now)["conditions"]
    assert (ready["status"], ready["reason"], ended["status"]) == ("False", reasons.STARTING, "False")
    problem = Problem(reason=reasons.QUOTA_EXCEEDED, message="m")
    ready, _ = replica_status(world.live[0], problems=[problem], now=world.now)["conditions"]
    assert (ready["reason"], ready["message"]) == (reasons.QUOTA_EXCEEDED, "m")
    world.settle()
    ready, _ = replica_status(world.live[0], problems=(), now=world.now)["conditions"]
    assert (ready["status"], ready["reason"]) == ("True", reasons.SERVING)
    world.spec = engine_spec(replicas=0)
    world.settle()
    replica = next(iter(world.replicas.values()))
    ready, ended = replica_status(replica, problems=(), now=world.now)["conditions"]
    assert (ready["status"], ended["status"], ended["reason"]) == ("False", "True", reasons.SCALE_DOWN)


def test_a_context_length_of_the_spec_before_does_not_fit_a_larger_minimum() -> None:
    world = settled()
    announce(world, 0, 4096)
    assert conditions(published(world))["ContextFit"] == ("True", reasons.FITS)
    world.spec = engine_spec(context=api.Context(min_length=8192))
    assert conditions(published(world))["ContextFit"] == ("Unknown", reasons.NOT_KNOWN)


def test_what_starts_is_named_with_what_it_waits_for() -> None:
    world = World(engine_spec(auth=api.Auth(api_key_secret_ref=api.KeyRef(name="keys", key="k"))))
    for _ in range(2):
        world.one_pass()
    (replica,) = world.live
    pod = replica.members[0]
    message = next(found["message"] for found in published(world)["conditions"] if found["type"] == "Ready")
    assert message.startswith(f"0 of 1 replicas serve: {replica.name}: pod {pod.name} ")
    assert "kubectl describe pod" in message
    row = Row(name=pod.name, uid=pod.uid, state="Starting", ranks=(RankRow(rank=0, state="Starting"),))
    world.change(replica, rows=(row,))
    message = next(found["message"] for found in published(world)["conditions"] if found["type"] == "Ready")
    assert message == f"0 of 1 replicas serve: {replica.name}: rank 0 Starting"


def test_a_long_message_is_published_whole_and_carried_on_in_short() -> None:
    """128 failures have to fit into one object of the API."""
    world = settled()
    words = "x" * 4096
    world.change_member(
        world.live[0].members[0].name,
        has_ended=True,
        is_ready=False,
        failure=Failure(class_="Exception", message=words, role="engine-core", rank=0, incarnation=1, detected_time=world.now),
    )
    world.one_pass()
    assert published(world)["lastFailure"]["message"] == words
    world.settle()
    (successor,) = world.replicas.values()
    assert 0 < len(successor.spec.failures[0].message) <= 512
    assert published(world)["lastFailure"]["message"] == words


def test_a_monitor_that_is_down_is_told_and_takes_nothing_from_ready_and_ends_nothing() -> None:
    world = settled(replicas=2)
    problem = Problem(reason=reasons.MONITOR_DOWN, message="the monitor of pod p does not run", is_harmless=True)
    world.change_member(world.live[0].members[0].name, problem=problem)
    found = published(world)
    assert conditions(found)["Ready"] == ("True", reasons.MONITOR_DOWN)
    assert conditions(found)["Progressing"] == ("False", reasons.SETTLED)
    assert found["conditions"][0]["message"] == "2 of 2 replicas serve: the monitor of pod p does not run"
    ready, _ = replica_status(world.live[0], problems=(), now=world.now)["conditions"]
    assert (ready["status"], ready["reason"]) == ("True", reasons.MONITOR_DOWN)
    assert world.plans()[1] == ()
    world.change_member(world.live[1].members[0].name, is_ready=False)
    world.change_member(world.live[1].members[0].name, problem=Problem(reason=reasons.UNSCHEDULABLE, message="m"))
    assert conditions(published(world))["Ready"] == ("False", reasons.UNSCHEDULABLE), "what harms goes first"


def test_the_last_failure_carries_the_evidence_and_its_successors_do_not() -> None:
    world = settled()
    (replica,) = world.live
    record = Failure(class_="Signal", signal=9, role="engine-core", rank=0, incarnation=1, pid=17, detected_time=world.now)
    told = msgspec.structs.replace(record, evidence="the last words")
    row = msgspec.structs.replace(replica.rows[0], state="Failed", failures=(told,))
    # The kubelet was faster than the monitor: the end is written without evidence, and the row of the same death has it.
    world.change_member(replica.members[0].name, has_ended=True, is_ready=False, failure=record)
    world.one_pass()
    assert "evidence" not in published(world)["lastFailure"]
    world.change(world.replicas[replica.name], rows=(row,))
    assert published(world)["lastFailure"]["evidence"] == "the last words"
    world.settle()
    (successor,) = world.ready
    assert [failure.evidence for failure in successor.spec.failures] == [""]
    assert published(world)["lastFailure"]["evidence"] == "the last words", "also when its replica is gone"


def test_the_evidence_of_the_row_and_of_the_termination_message_ends_up_in_the_recorded_end() -> None:
    for in_row, in_words in (("row", "words"), ("row", ""), ("", "words")):
        world = settled()
        (replica,) = world.live
        record = Failure(class_="Signal", signal=9, role="engine-core", rank=0, incarnation=1, pid=17, detected_time=world.now)
        told = msgspec.structs.replace(record, evidence=in_row)
        world.change(replica, rows=(msgspec.structs.replace(replica.rows[0], state="Failed", failures=(told,)),))
        words = msgspec.structs.replace(record, evidence=in_words)
        world.change_member(replica.members[0].name, has_ended=True, is_ready=False, failure=words)
        world.one_pass()
        assert published(world)["lastFailure"]["evidence"] == in_row or in_words
