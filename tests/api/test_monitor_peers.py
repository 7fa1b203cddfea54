"""What monitors learn from their replica's object on the real API server, with the rights that they have there and no operator."""

from __future__ import annotations

import pytest

from monitored_replica import GROUP, PLURAL, VERSION, World, row_of

pytestmark = pytest.mark.api


def test_a_rank_that_died_in_one_member_is_ended_in_the_other_which_reports_no_failure(world: World) -> None:
    leader, other = world.monitor("pod-0").launcher(), world.monitor("pod-1").launcher()
    for launcher in (leader, other):
        assert launcher.hear() == {"type": "stored"}
        launcher.state("Serving")
    row_of(world, lambda row: row["state"] == "Serving")
    leader.exited(evidence="what it said last")
    leader.say({"type": "state", "state": "Failed", "ranks": [{"rank": 0, "incarnation": 1, "state": "Dead"}]})
    process = {"role": "engine-core", "rank": 0, "index": 0, "incarnation": 1, "pid": 7}
    cause = process | {"class": "Signal", "message": "killed", "signal": 9}
    heard = other.hear()
    assert (heard.pop("cause"), heard) == (cause, {"type": "abort", "ranks": [0]})
    assert (world.row("pod-0") or {})["failures"][0]["evidence"] == "what it said last"
    assert (world.row("pod-1") or {})["failures"] == []


def test_a_replica_that_waits_for_a_finalizer_drains_and_its_row_is_still_written(world: World) -> None:
    launcher = world.monitor().launcher()
    assert launcher.hear() == {"type": "stored"}
    launcher.state("Serving")
    row_of(world, lambda row: row["state"] == "Serving")
    where = (GROUP, VERSION, world.namespace, PLURAL, "replica")
    world.objects.patch_namespaced_custom_object(*where, {"metadata": {"finalizers": ["enginehouse.dev/test"]}})
    world.delete("replica")
    assert launcher.hear() == {"type": "drain"}
    launcher.state("Draining")
    row_of(world, lambda row: row["state"] == "Draining")
    world.objects.patch_namespaced_custom_object(*where, {"metadata": {"finalizers": []}})
    launcher.state("Draining", kvBlocks=5)
    assert launcher.hears_nothing(), "it was told already"
