"""The monitor's row on the real API server, with the rights that the operator gives it and no others."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from enginehouse_operator.monitor.api import Conflict, RowApi
from enginehouse_operator.monitor.connection import Access
from enginehouse_operator.monitor.row import Row
from monitored_replica import GROUP, PLURAL, VERSION, World, row_of

pytestmark = pytest.mark.api


def test_the_row_is_born_and_changes_beside_other_rows_and_the_operators_status(world: World) -> None:
    status = {"conditions": [], "members": [{"name": "pod-1", "uid": "other", "state": "Serving"}], "observedGeneration": 1}
    world.objects.patch_namespaced_custom_object_status(GROUP, VERSION, world.namespace, PLURAL, "replica", {"status": status})
    monitor = world.monitor()
    launcher = monitor.launcher()
    assert launcher.hear() == {"type": "stored"}
    born = world.row()
    assert born == {"name": "pod-0", "uid": "pod-uid", "state": "Starting", "address": "10.0.0.7", "ranks": [], "failures": []}
    launcher.state("Serving", maxContextLength=8192, kvBlocks=1024)
    launcher.exited(planned=False, message="killed \x7f 🤗")
    row = row_of(world, lambda row: row["state"] == "Serving" and row["failures"])
    assert row["ranks"] == [{"rank": 0, "incarnation": 1, "state": "Serving", "maxContextLength": 8192, "kvBlocks": 1024}]
    assert (row["failures"][0]["class"], row["failures"][0]["message"]) == ("Signal", "killed \x7f 🤗")
    found = world.get()
    assert found["status"]["observedGeneration"] == 1
    assert world.row("pod-1") == {"name": "pod-1", "uid": "other", "state": "Serving"}
    managers = {entry["manager"] for entry in found["metadata"]["managedFields"] if entry["operation"] == "Apply"}
    assert managers == {"pod-0"}
    assert monitor.terminate() == 0
    monitor = world.monitor()
    assert monitor.launcher().hear() == {"type": "stored"}
    assert monitor.terminate() == 0
    assert world.get()["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"], "a restart writes nothing"
    launcher.close()


def test_a_dropped_rank_leaves_the_row(world: World) -> None:
    monitor = world.monitor()
    launcher = monitor.launcher()
    launcher.hear()
    launcher.state("Serving")
    row_of(world, lambda row: row["ranks"])
    launcher.say({"type": "state", "state": "Ended", "ranks": []})
    assert not row_of(world, lambda row: row["state"] == "Ended").get("ranks")
    assert monitor.terminate() == 0


def test_a_row_of_another_pod_is_not_touched(world: World) -> None:
    other = {"name": "pod-0", "uid": "another", "state": "Serving"}
    world.objects.patch_namespaced_custom_object_status(
        GROUP, VERSION, world.namespace, PLURAL, "replica", {"status": {"members": [other]}}
    )
    launcher = world.monitor().launcher()
    launcher.state("Starting")
    assert launcher.hear() == {"type": "abort", "ranks": [0]}
    assert world.row() == other


def test_a_row_is_not_born_in_a_replica_that_changed_since_it_was_read(world: World) -> None:
    server = urlsplit(world.get_host())
    access = Access(
        host=str(server.hostname),
        port=int(server.port or 443),
        token_file=world.credentials / "token",
        ca_file=world.credentials / "ca.crt",
    )
    api = RowApi(access=access, namespace=world.namespace, replica="replica", replica_uid=world.uid, field_manager="pod-0")
    version = world.get()["metadata"]["resourceVersion"]
    status = {"status": {"observedGeneration": 1}}
    world.objects.patch_namespaced_custom_object_status(GROUP, VERSION, world.namespace, PLURAL, "replica", status)
    row = Row(name="pod-0", uid="pod-uid", address="10.0.0.7")
    with pytest.raises(Conflict):
        api.apply(row, resource_version=version)
    assert world.row() is None
    api.apply(row, resource_version=world.get()["metadata"]["resourceVersion"])
    assert world.row() is not None
    api.close()


def test_a_successor_of_the_same_name_is_never_written_to(world: World) -> None:
    monitor = world.monitor()
    launcher = monitor.launcher()
    launcher.hear()
    world.delete("replica")
    successor = world.create("replica")
    assert successor != world.uid
    launcher.state("Serving")
    assert launcher.hear() == {"type": "drain"}, "and nothing more: what is under way is finished"
    monitor.process.kill()
    monitor.process.wait()
    again = world.monitor().launcher()
    again.state("Serving")
    assert again.hear() == {"type": "drain"}
    assert world.row() is None


def test_the_right_is_for_one_replicas_status_and_nothing_else(world: World) -> None:
    world.create("other")
    assert world.statuses_allowed() == {
        "read own replica": 200,
        "read another": 403,
        "change own spec": 403,
        "change another's status": 403,
        "read pods": 403,
    }
