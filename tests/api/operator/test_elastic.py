"""Replicas of executor Ray on a real API server: ranks that come and go, shortages, tokens; Ray and its launchers by script."""

from __future__ import annotations

import base64
import time

import pytest
from operator_process import OperatorProcess
from stage import Raw, Stage

from kubectl_plugin import Plugin
from localkube import cluster

pytestmark = pytest.mark.api

RAY: Raw = {"executor": "Ray", "parallelism": {"data": 1}}
"""A pod for each rank."""


def serving(stage: Stage, data: int = 1, **spec: Raw) -> OperatorProcess:
    operator = stage.operator()
    stage.apply(**{**RAY, "parallelism": {"data": data}, **spec})
    stage.until_condition("Ready", "True", "AllReplicasServe")
    return operator


def ask_for(stage: Stage, data: int) -> None:
    stage.patch(spec={"parallelism": {"data": data}})


def is_whole(stage: Stage, data: int) -> bool:
    """One replica with so many ranks in its leader's row, and pods, and rows of these pods and no others."""
    (replica,) = stage.replicas()
    rows = replica["status"].get("members", [])
    pods = {pod["metadata"]["uid"] for pod in stage.pods()}
    leader = next((row for row in rows if "placement" in row), {"ranks": []})
    return (
        [rank["state"] for rank in leader["ranks"]] == ["Serving"] * data
        and {row["uid"] for row in rows} == pods
        and len(pods) == data
    )


def settled(stage: Stage, data: int) -> None:
    stage.until_condition("Ready", "True", "AllReplicasServe")
    stage.until_settled(lambda: is_whole(stage, data))


def leader_uid(stage: Stage) -> str:
    (leader,) = (pod for pod in stage.pods() if pod["metadata"]["labels"]["enginehouse.dev/role"] == "leader")
    return str(leader["metadata"]["uid"])


def events(stage: Stage, reason: str) -> list[str]:
    found = stage.list("/api/v1/namespaces/{namespace}/events")
    return [event["message"] for event in found if event["reason"] == reason]


def test_ranks_are_added_and_removed_and_added_again_without_a_successor(stage: Stage) -> None:
    serving(stage)
    before, leader = stage.replicas()[0], leader_uid(stage)
    for data in (3, 1, 3):
        ask_for(stage, data)
        settled(stage, data)
    (after,) = stage.replicas()
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert (leader_uid(stage), after["spec"]["engine"]) == (leader, before["spec"]["engine"])
    row = next(row for row in after["status"]["members"] if "placement" in row)
    assert [rank["incarnation"] for rank in row["ranks"]] == [1, 2, 2], "old identities are never used again"
    assert (len(events(stage, "RanksAdded")), len(events(stage, "RanksRemoved"))) == (2, 1)
    status = stage.engine()["status"]
    assert (status["restarts"], "lastFailure" in status) == (0, False)
    writes = len(stage.writes())
    stage.patch(metadata={"annotations": {"somebody": "looks"}})
    stage.until_settled(lambda: True)
    assert len(stage.writes()) == writes, "settled is zero writes"


def test_a_pod_goes_only_when_its_rank_is_out_also_with_another_operator(stage: Stage) -> None:
    operator = serving(stage, 3)
    drained = {2}
    stage.kubelet.has_drained = lambda rank: rank in drained
    ask_for(stage, 1)
    stage.until(lambda: len(stage.pods()) == 2, saying="the highest is out")
    stage.until_condition("Ready", "True")
    operator.kill()
    stage.operator()
    stage.until(lambda: stage.log.count("works on") == 2, saying="the next one leads")
    stage.until_settled(lambda: len(stage.pods()) == 2)
    ask_for(stage, 3)
    stage.until_settled(lambda: stage.replicas()[0]["spec"]["data"] == 1)
    drained.add(1)
    settled(stage, 3)
    assert [raw["spec"]["epoch"] for raw in stage.replicas()] == [1]


def test_a_shortage_is_readable_within_five_seconds_and_ends_by_itself_without_anything_made_again(
    stage: Stage, api_cluster: cluster.Cluster, plugin: Plugin
) -> None:
    serving(stage)
    room = {0}
    stage.kubelet.has_room = lambda rank: rank in room
    ask_for(stage, 2)
    stage.until(lambda: len(stage.pods()) == 2, saying="its pod is there")
    said = "bundle 0 of rank 1 needs accelerator: 1, no node has it"
    began = time.monotonic()
    stage.until(lambda: said in api_cluster.kubectl("-n", stage.namespace, "describe", "ie", "one"), saying=said, seconds=5)
    columns = api_cluster.kubectl("-n", stage.namespace, "get", "ie").splitlines()
    assert "PlacementLacking" in columns[1], columns
    assert time.monotonic() - began < 5
    stage.until_condition("Available", "True")
    stage.until_condition("PlacementReady", "False", "PlacementLacking")
    answer = plugin.why("one")
    assert said in answer
    assert "-> Let the pods have what the bundle needs (spec.resources), or ask for fewer ranks" in answer
    pods, (replica,) = {pod["metadata"]["uid"] for pod in stage.pods()}, stage.replicas()
    room.add(1)
    settled(stage, 2)
    stage.until_condition("PlacementReady", "True", "Placed")
    assert {pod["metadata"]["uid"] for pod in stage.pods()} == pods
    assert [raw["metadata"]["uid"] for raw in stage.replicas()] == [replica["metadata"]["uid"]]
    assert any(said in message for message in events(stage, "PlacementLacking"))
    assert len(events(stage, "Placed")) == 1


def test_a_member_that_is_lost_before_a_rank_needs_it_is_made_again_and_ends_nothing(stage: Stage) -> None:
    serving(stage)
    room = {0}
    stage.kubelet.has_room = lambda rank: rank in room
    ask_for(stage, 2)
    (added,) = stage.until(
        lambda: [row["uid"] for row in stage.replicas()[0]["status"].get("members", ()) if "placement" not in row],
        saying="the added member reports",
    )
    victim = next(pod for pod in stage.pods() if pod["metadata"]["uid"] == added)["metadata"]
    stage.until_condition("PlacementReady", "False", "PlacementLacking")
    stage._core.delete_namespaced_pod(victim["name"], stage.namespace, grace_period_seconds=0)
    stage.until(
        lambda: [pod["metadata"]["uid"] for pod in stage.pods() if pod["metadata"]["name"] == victim["name"]] not in ([], [added]),
        saying="another pod of its name",
    )
    room.add(1)
    settled(stage, 2)
    assert [("end" in raw["spec"], raw["spec"]["epoch"]) for raw in stage.replicas()] == [(False, 1)]
    assert stage.engine()["status"]["restarts"] == 0


def test_a_change_of_more_than_the_number_of_ranks_makes_a_successor_with_that_number(stage: Stage) -> None:
    serving(stage)
    stage.patch(spec={"parallelism": {"data": 2}, "context": {"maxLength": 4096}})
    settled(stage, 2)
    (replica,) = stage.replicas()
    assert (replica["spec"]["epoch"], replica["spec"]["data"]) == (2, 2)
    assert events(stage, "RanksAdded") == []


def secrets(stage: Stage) -> list[Raw]:
    return stage.list("/api/v1/namespaces/{namespace}/secrets")


def test_each_replica_has_a_token_of_its_own_which_goes_with_it(stage: Stage) -> None:
    serving(stage, 2)
    (first,) = secrets(stage)
    (replica,) = stage.replicas()
    assert first["metadata"]["ownerReferences"][0]["uid"] == replica["metadata"]["uid"]
    mounted = {
        volume["secret"]["secretName"] for pod in stage.pods() for volume in pod["spec"]["volumes"] if volume["name"] == "ray-token"
    }
    assert mounted == {first["metadata"]["name"]}
    assert len(base64.b64decode(first["data"]["token"])) == 64
    ask_for(stage, 3)
    settled(stage, 3)
    assert secrets(stage) == [first], "members that come later have the same"
    stage.patch(spec={"context": {"maxLength": 4096}})
    settled(stage, 3)
    (second,) = stage.until(lambda: [raw for raw in secrets(stage) if not stage.garbage()], saying="the first one's is gone")
    assert second["data"] != first["data"]
    stage.delete()
    stage.until(lambda: not secrets(stage) and not stage.pods(), saying="nothing is left")
    verbs = {event["verb"] for event in stage.audit() if event["objectRef"]["resource"] == "secrets" and is_operators(event)}
    assert verbs == {"create"}, "it reads none"


def is_operators(event: Raw) -> bool:
    return str(event["userAgent"]).startswith(("enginehouse-operator", "kopf"))
