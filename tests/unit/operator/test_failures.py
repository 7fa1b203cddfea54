"""How each class of failures is answered, and that nothing else in the operator knows classes by name."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from world import ends, settled

from enginehouse_operator import api, reasons
from enginehouse_operator.failures import NODE_LOST, POLICIES, REMOVED, Failure


@pytest.mark.parametrize("class_", sorted(POLICIES))
def test_a_class_is_answered_as_its_policy_says(class_: str) -> None:
    policy = POLICIES[class_]
    world = settled(restart=api.Restart(max_restarts=0))
    world.kill(world.name_of(0, 1), class_)
    world.settle()
    waiting = [verdict.reason for verdict in world.plans()[0].waiting]
    if policy.is_final:
        assert waiting == [class_]
    elif policy.counts:
        assert waiting == [reasons.RESTART_BUDGET_SPENT]
    else:
        assert (waiting, [replica.spec.epoch for replica in world.ready]) == ([], [2])


@pytest.mark.parametrize("class_", sorted(name for name, policy in POLICIES.items() if not policy.is_final))
@pytest.mark.parametrize("age_seconds", [0, 601])
def test_a_second_one_delays_the_successor_or_does_not_when_the_replica_was_old(class_: str, age_seconds: int) -> None:
    world = settled()
    for epoch in (1, 2):
        world.now += timedelta(seconds=age_seconds)
        world.kill(world.name_of(0, epoch), class_)
        world.one_pass()
        died = world.now
        world.settle()
    (live,) = world.live
    is_delayed = POLICIES[class_].delays == "always" or age_seconds == 0
    assert live.created - died == timedelta(seconds=10 if is_delayed else 0)


def test_a_class_of_tomorrow_is_answered_like_one_that_nobody_knows() -> None:
    assert Failure(class_="Quantum").policy is POLICIES["Unknown"]


@pytest.mark.parametrize(("lost", "class_", "reason"), [
    (True, NODE_LOST, reasons.MEMBER_LOST),
    (False, REMOVED, reasons.MEMBER_REMOVED),
])  # fmt: skip
def test_a_pod_that_goes_with_its_node_is_lost_and_one_that_is_evicted_was_removed(lost: bool, class_: str, reason: str) -> None:
    world = settled(restart=api.Restart(max_restarts=0))
    (world.lose_node if lost else world.remove)(world.name_of(0, 1))
    (end,) = ends(world)
    assert end.end.failure is not None
    assert (end.reason, end.end.failure.class_) == (reason, class_)
    assert end.end.deadline == world.now + timedelta(seconds=60), "what lives drains"
    world.one_pass()
    world.one_pass()
    assert [replica.spec.epoch for replica in world.live] == [2], "nobody waits for a pod that no kubelet removes"


def test_a_death_before_its_node_was_lost_is_told_before_that() -> None:
    world = settled()
    killed = Failure(class_="Signal", signal=9, role="engine-core", rank=0, incarnation=1)
    row = msgspec.structs.replace(world.live[0].rows[0], state="Failed", failures=(killed,))
    world.change(world.live[0], rows=(row,))
    world.lose_node(world.name_of(0, 1))
    assert [end.reason for end in ends(world)] == [reasons.MEMBER_FAILED]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(role="worker", rank=1, member="p", class_="Signal", signal=9), "worker rank 1 of p: signal 9"),
        (Failure(role="api-server", index=2, member="p", class_="Hang", signal=9), "api-server 2 of p: Hang, signal 9"),
        (
            Failure(member="p", class_="Exception", exit_code=1, message="Traceback:\n  a.py\nValueError: no\n"),
            "a process of p: Exception, exit code 1: ValueError: no",
        ),
    ],
)
def test_a_failure_is_told_in_one_line(failure: Failure, words: str) -> None:
    assert str(failure) == words
