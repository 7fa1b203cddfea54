"""The two planners as sentences: what they do in a given world."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from world import World, engine_spec, settled

from enginehouse_operator import api, reasons, steps
from enginehouse_operator.failures import Failure
from enginehouse_operator.plan_engine import plan_engine
from enginehouse_operator.ranks import Row


def ends(taken: tuple[steps.AnyStep, ...]) -> list[tuple[str, str]]:
    return [(step.name, step.reason) for step in taken if isinstance(step, steps.EndReplica)]


def test_a_new_engine_gets_its_replicas_and_then_nothing_more() -> None:
    world = settled(replicas=3)
    assert [replica.spec.index for replica in world.ready] == [0, 1, 2]
    assert world.plans()[1] == ()


def test_scaling_down_ends_the_broken_one_first_although_its_index_is_the_lowest() -> None:
    world = settled(replicas=2)
    world.change_member(world.live[0].members[0].name, is_ready=False)
    world.spec = engine_spec(replicas=1)
    assert ends(world.plans()[1]) == [(world.name_of(0, 1), reasons.SCALE_DOWN)]


def test_scaling_down_ends_an_index_that_waits_for_a_successor_before_any_live_one() -> None:
    world = settled(replicas=2, restart=api.Restart(max_restarts=0))
    world.kill(world.name_of(0, 1))
    world.settle()
    world.spec = msgspec.structs.replace(world.spec, replicas=1)
    world.settle()
    assert [replica.name for replica in world.ready] == [world.name_of(1, 1)]


def test_scaling_up_again_takes_the_index_and_the_epoch_of_the_ended_one() -> None:
    world = settled(replicas=2)
    for replicas in (1, 2):
        world.spec = engine_spec(replicas=replicas)
        world.settle()
    assert [replica.name for replica in world.ready] == [world.name_of(0, 1), world.name_of(1, 2)]
    assert world.name_of(1, 1) not in world.replicas


def test_suspend_ends_all_and_resume_brings_them_back() -> None:
    world = settled(replicas=2)
    world.spec = engine_spec(replicas=2, suspend=True)
    world.settle()
    assert world.live == []
    assert {replica.spec.end.reason for replica in world.replicas.values()} == {reasons.SUSPENDED}
    world.spec = engine_spec(replicas=2)
    world.settle()
    assert len(world.ready) == 2


@pytest.mark.parametrize("change", ["model", "resources", "template"])
def test_a_changed_spec_replaces_one_replica_at_a_time(change: str) -> None:
    world = settled(replicas=3)
    changed = {
        "model": api.Model(uri="hf://a/c"),
        "resources": api.Resources(limits={"memory": "1Gi"}),
        "template": {"spec": {"nodeSelector": {"a": "b"}}},
    }[change]
    world.spec = engine_spec(replicas=3, **{change: changed})
    assert ends(world.plans()[1]) == [(world.name_of(2, 1), reasons.ROLLOUT)]
    world.settle()
    assert [replica.spec.epoch for replica in world.ready] == [2, 2, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"rollout": api.Rollout(max_unavailable=2)},
        {"restart": api.Restart(max_restarts=9)},
        {"service": api.Service(port=81)},
        {"context": api.Context(min_length=1)},  # written out, equal to the default
    ],
    ids=["rollout", "restart", "service", "a written default"],
)
def test_a_change_that_concerns_no_running_replica_does_nothing(change: dict[str, object]) -> None:
    world = settled(replicas=2)
    world.spec = engine_spec(replicas=2, **change)
    assert world.plans()[1] == ()


def test_a_rollout_replaces_replicas_that_do_not_serve_at_once() -> None:
    world = settled(replicas=3)
    for replica in world.live[:2]:
        world.change_member(replica.members[0].name, is_ready=False)
    world.spec = engine_spec(replicas=3, model=api.Model(uri="hf://a/c"))
    assert ends(world.plans()[1]) == [(world.name_of(0, 1), reasons.ROLLOUT), (world.name_of(1, 1), reasons.ROLLOUT)]


def test_nothing_is_created_or_replaced_while_on_hold_but_scaling_down_goes_on() -> None:
    world = settled(replicas=2)
    replicas = tuple(world.replicas.values())
    changed = engine_spec(replicas=2, model=api.Model(uri="hf://a/c"))
    assert plan_engine(world.engine, changed, replicas, hold=True, now=world.now).steps == ()
    fewer = engine_spec(replicas=1, model=api.Model(uri="hf://a/c"))
    assert len(plan_engine(world.engine, fewer, replicas, hold=True, now=world.now).steps) == 1


def test_a_death_is_answered_at_once_and_later_ones_after_growing_delays() -> None:
    world = settled()
    delays = []
    for epoch in range(1, 6):
        world.kill(world.name_of(0, epoch))
        world.one_pass()  # the end is written
        died = world.now
        world.settle()
        delays.append((world.live[0].created - died).total_seconds())
    assert delays == [0, 10, 20, 40, 80]


def test_the_budget_spent_means_no_successor_until_the_spec_changes() -> None:
    world = settled(restart=api.Restart(max_restarts=2))
    for epoch in (1, 2, 3):
        world.kill(world.name_of(0, epoch))
        world.settle()
    plan, taken = world.plans()
    assert taken == ()
    assert [verdict.reason for verdict in plan.waiting] == [reasons.RESTART_BUDGET_SPENT]
    world.now += timedelta(days=30)
    assert world.plans()[1] == (), "waiting heals nothing"
    world.spec = msgspec.structs.replace(world.spec, model=api.Model(uri="hf://a/c"))
    world.settle()
    assert [(r.spec.epoch, r.spec.failures) for r in world.ready] == [(4, ())]


def test_the_annotation_forgives_failures_and_may_set_a_later_start() -> None:
    world = settled(restart=api.Restart(max_restarts=0))
    world.kill(world.name_of(0, 1))
    world.settle()
    later = world.now + timedelta(seconds=100)
    world.engine = msgspec.structs.replace(world.engine, resume_after=later)
    plan = world.plans()[0]
    assert plan.look_again_seconds == 100
    assert plan.waiting[0].reason == reasons.RESTART_DELAYED
    assert "2026-01-01T00:01:40Z, as the annotation enginehouse.dev/resume-after says" in plan.waiting[0].message
    world.settle()
    assert [(r.spec.epoch, r.created, r.spec.failures) for r in world.ready] == [(2, later, ())]


@pytest.mark.parametrize("class_", ["InvalidConfig", "ModelNotFound", "ContextTooSmall"])
def test_a_cause_that_trying_again_cannot_help_gets_no_successor(class_: str) -> None:
    world = settled()
    world.kill(world.name_of(0, 1), class_)
    world.settle()
    assert world.live == []
    assert [verdict.reason for verdict in world.plans()[0].waiting] == [class_]
    world.spec = msgspec.structs.replace(world.spec, context=api.Context(min_length=2))
    world.settle()
    assert len(world.ready) == 1


def test_failures_outside_the_window_no_longer_count() -> None:
    world = settled(restart=api.Restart(max_restarts=1, window_seconds=60))
    for epoch in range(1, 6):
        world.now += timedelta(seconds=3600)
        world.kill(world.name_of(0, epoch))
        world.settle()
    assert len(world.ready) == 1
    assert len(world.ready[0].spec.failures) == 1


def test_a_vanished_pod_that_had_reported_is_lost_and_its_replica_ends() -> None:
    world = settled()
    world.vanish(world.name_of(0, 1))
    assert ends(world.plans()[1]) == [(world.name_of(0, 1), reasons.MEMBER_LOST)]
    world.settle()
    assert [replica.spec.epoch for replica in world.ready] == [2]


def test_a_vanished_pod_without_a_row_is_made_again_under_its_name() -> None:
    world = World(engine_spec())
    world.one_pass()
    world.one_pass()
    name = world.live[0].members[0].name
    world.vanish(world.name_of(0, 1))
    world.settle()
    assert world.births[name] == 2
    assert [replica.name for replica in world.ready] == [world.name_of(0, 1)]


def test_a_pod_removed_by_somebody_costs_no_budget_but_early_ones_delay() -> None:
    world = settled(restart=api.Restart(max_restarts=0))
    starts = []
    for epoch in range(1, 4):
        world.remove(world.name_of(0, epoch))
        world.one_pass()
        removed = world.now
        world.settle()
        starts.append((world.live[0].created - removed).total_seconds())
    assert starts == [0, 10, 20]
    assert [failure.class_ for failure in world.ready[0].spec.failures] == ["Removed"] * 3


def test_a_removed_pod_of_old_age_delays_nothing() -> None:
    world = settled()
    for epoch in range(1, 4):
        world.now += timedelta(seconds=601)
        world.remove(world.name_of(0, epoch))
        world.settle()
    assert world.ready[0].spec.failures == ()


def test_a_member_of_an_ending_replica_leaves_service_before_it_is_stopped_and_the_replica_stays_for_its_successor() -> None:
    world = settled()
    world.spec = engine_spec(replicas=0)
    world.one_pass()
    assert [type(step) for step in world.plans()[1]] == [steps.LeaveService, steps.DeleteMember]
    world.settle()
    assert [replica.is_gone for replica in world.replicas.values()] == [True]


def test_a_replica_that_cannot_be_read_is_left_alone() -> None:
    world = settled()
    world.change(world.live[0], copy=None)
    world.spec = engine_spec(model=api.Model(uri="hf://a/c"))
    assert world.plans()[1] == ()


def reported(world: World, state: str, *failures: Failure) -> None:
    member = world.live[0].members[0]
    world.change(world.live[0], rows=(Row(name=member.name, uid=member.uid, state=state, failures=failures),))


def written_failure(world: World) -> Failure:
    _, taken = world.plans()
    (end,) = [step.end for step in taken if isinstance(step, steps.EndReplica)]
    assert end.failure is not None
    return end.failure


CORE = {"role": "engine-core", "rank": 0, "incarnation": 1, "pid": 17}


def test_the_monitors_word_is_enough_to_act_on() -> None:
    world = settled()
    reported(world, "Failed", Failure(class_="Signal", signal=11, **CORE))
    assert written_failure(world).signal == 11


def test_a_launcher_that_died_itself_is_judged_by_its_container() -> None:
    world = settled()
    unknown = Failure(class_="Unknown", role="launcher", pid=1)
    reported(world, "Failed", unknown)
    assert ends(world.plans()[1]) == [], "the kubelet is about to say"
    member = world.live[0].members[0]
    world.change_member(member.name, has_ended=True, failure=Failure(class_="OutOfMemory", role="launcher", signal=9))
    assert written_failure(world).class_ == "OutOfMemory"


def test_the_last_words_and_the_monitors_record_of_the_same_death_make_one() -> None:
    world = settled()
    detected = world.now - timedelta(milliseconds=5)
    reported(world, "Failed", Failure(class_="Signal", signal=9, detected_by="Pipe", detected_time=detected, **CORE))
    world.change_member(world.live[0].members[0].name, has_ended=True, failure=Failure(class_="Signal", signal=9, **CORE))
    failure = written_failure(world)
    assert (failure.detected_by, failure.detected_time) == ("Pipe", detected)


def test_a_clock_that_is_ahead_does_not_delay_anything() -> None:
    world = settled()
    reported(world, "Failed", Failure(class_="Signal", detected_time=world.now + timedelta(days=1), **CORE))
    assert written_failure(world).detected_time == world.now


def test_a_row_of_another_pod_of_the_same_name_means_that_the_member_is_lost() -> None:
    world = settled()
    world.change_member(world.live[0].members[0].name, uid="another")
    assert ends(world.plans()[1]) == [(world.name_of(0, 1), reasons.MEMBER_LOST)]


NOT_FOUND = Failure(class_="ModelNotFound", message="file:///nowhere does not exist", role="launcher", exit_code=78)


@pytest.mark.parametrize("order", [("row", "pod"), ("pod", "row"), ("pod",)])
def test_a_model_that_is_not_there_stalls_whichever_report_comes_first(order: tuple[str, ...]) -> None:
    world = World(engine_spec())
    world.one_pass()
    world.one_pass()
    (replica,) = world.live
    for report in order:
        if report == "row":
            reported(world, "Failed")  # the launcher refused before it started a process, so no process has failed
        else:
            world.change_member(replica.members[0].name, has_ended=True, failure=NOT_FOUND)
        if order[0] == "row" and report == "row":
            assert ends(world.plans()[1]) == [], "the kubelet is about to say"
    assert written_failure(world).class_ == "ModelNotFound"
    world.settle()
    (verdict,) = world.plans()[0].waiting
    assert (verdict.reason, verdict.not_before) == (reasons.MODEL_NOT_FOUND, None)
    assert sum(world.births.values()) == 2, "one replica and its pod"


@pytest.mark.parametrize("vanished", [False, True])
def test_a_cause_that_cannot_go_away_is_told_before_what_followed_from_it(vanished: bool) -> None:
    world = settled()
    refused = Failure(class_="ContextTooSmall", exit_code=78, **CORE)
    reported(world, "Failed", refused, Failure(class_="ExitCode", exit_code=1, role="api-server", pid=18))
    if vanished:
        world.vanish(world.live[0].name)
    assert written_failure(world).class_ == "ContextTooSmall"


def test_a_death_counts_although_somebody_deletes_its_pod_at_the_same_time() -> None:
    world = settled()
    reported(world, "Failed", Failure(class_="Signal", signal=9, **CORE))
    world.remove(world.live[0].name)
    assert ends(world.plans()[1]) == [(world.name_of(0, 1), reasons.MEMBER_FAILED)]


def test_what_waits_for_a_person_is_told_also_while_on_hold() -> None:
    world = settled(replicas=2, restart=api.Restart(max_restarts=0))
    world.kill(world.name_of(0, 1))
    world.settle()
    replicas = tuple(world.replicas.values())
    plan = plan_engine(
        world.engine, engine_spec(replicas=3, restart=api.Restart(max_restarts=0)), replicas, hold=True, now=world.now
    )
    assert [verdict.reason for verdict in plan.waiting] == [reasons.RESTART_BUDGET_SPENT]
    assert plan.steps == ()


def test_an_engine_that_ends_by_itself_has_failed_also_with_exit_code_0() -> None:
    world = settled(restart=api.Restart(max_restarts=0))
    world.change_member(world.live[0].members[0].name, has_ended=True, succeeded=True, is_ready=False)
    failure = written_failure(world)
    assert (failure.class_, failure.exit_code, failure.policy.counts) == ("ExitCode", 0, True)
    world.settle()
    assert [verdict.reason for verdict in world.plans()[0].waiting] == [reasons.RESTART_BUDGET_SPENT]
