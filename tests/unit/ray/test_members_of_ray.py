"""The actor manager while nodes come and go. A node that comes or goes in a test is that test's own, so each runs alone, too."""

from __future__ import annotations

import json
import os

import pytest

from actor_manager_process import ActorManagerProcess
from ray_nodes import RayNodes


@pytest.fixture(scope="module")
def member_1(nodes: RayNodes) -> None:
    """A node beside the head that stays."""
    nodes.start(1, accelerators=2)


def test_a_rank_waits_for_its_member_and_others_do_not_notice(nodes: RayNodes, manager: ActorManagerProcess) -> None:
    both = manager.rank(0), manager.rank(1, members=(2, 2))
    manager.want(*both)
    _, pending = manager.placement("Placed", "Pending")
    before = manager.pid_of("worker", 0)
    lacking = "needs accelerator: 1, member 2 has not joined"
    assert pending["bundles"] == [{"index": index, "state": "Pending", "node": "", "lacking": lacking} for index in (0, 1)]
    nodes.start(2, accelerators=2)
    _, placed = manager.placement("Placed", "Placed")
    assert placed["bundles"] == [{"index": index, "state": "Placed", "node": "pod-2", "lacking": ""} for index in (0, 1)]
    manager.pid_of("worker", 1, 1, member=2)
    manager.pid_of("engine-core", 1)
    assert manager.pid_of("worker", 0) == before
    os.kill(before, 0)
    assert not [said for said in manager.heard if said["type"] == "ended"]


@pytest.mark.usefixtures("member_1")
def test_a_rank_across_members_has_its_first_workers_with_the_manager(manager: ActorManagerProcess) -> None:
    manager.want(manager.rank(0, members=(0, 0, 1, 1)), strategy="Spread")
    (placed,) = manager.placement("Placed")
    assert placed["strategy"] == "Spread"
    pids = [manager.pid_of("worker", 0, index, member=index // 2) for index in range(4)]
    manager.pid_of("engine-core", 0)  # it has its view then
    view = json.loads(manager.file("engine-core", 0).with_suffix(".workers").read_text())
    assert [worker["pid"] for worker in view] == pids


@pytest.mark.usefixtures("member_1")
def test_a_worker_that_would_be_in_another_member_is_not_started(manager: ActorManagerProcess) -> None:
    manager.want(manager.rank(0, members=(0, 1, 1, 1)))
    ended = manager.ended()
    assert ended["how"] == "NotStarted"
    assert "worker 1 of rank 0 belongs in member 1" in ended["message"] or "worker 3 of rank 0" in ended["message"]


def test_a_node_that_is_lost_takes_its_actors_and_not_the_others(nodes: RayNodes, manager: ActorManagerProcess) -> None:
    nodes.start(3, accelerators=2)
    manager.want(manager.rank(0), manager.rank(1, members=(3, 3)))
    manager.placement("Placed", "Placed")
    before = manager.pid_of("worker", 0)
    manager.pid_of("worker", 1, 1, member=3)
    nodes.stop(3)
    ended = [manager.ended(), manager.ended()]
    assert {(one["role"], one["rank"], one["how"]) for one in ended} == {("worker", 1, "Crashed")}
    manager.want(manager.rank(0))
    manager.placement("Placed")
    os.kill(before, 0)
    manager.want(manager.rank(0), manager.rank(1, members=(3, 3), after=1))
    manager.placement("Placed", "Pending")
