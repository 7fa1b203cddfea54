"""Whole passes against an API server in memory: what is written, in which order, and what a refusal leads to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from memory_api import MemoryApi, merged

from enginehouse_operator import names, reasons
from enginehouse_operator.act import Actor
from enginehouse_operator.events import Events
from enginehouse_operator.kubernetes_client import ApiError, Forbidden
from enginehouse_operator.queue import Again
from enginehouse_operator.reconcile import Reconciler
from enginehouse_operator.wanted.pods import Images

NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)
REPLICAS, PODS = "enginereplicas", "pods"


class Stage:
    """One engine and the operator's passes over it."""

    def __init__(self, **spec: Any) -> None:
        self.api = MemoryApi()
        events = Events(self.api)
        actor = Actor(self.api, events, Images(engine="e:1", monitor="m:1", pull_policy="Never"))
        self.reconciler = Reconciler(self.api, actor, events, clock=lambda: NOW)
        self.engine = self.api.put(
            "inferenceengines",
            {
                "apiVersion": names.API_VERSION,
                "kind": names.ENGINE_KIND,
                "metadata": {"name": "e"},
                "spec": {"executor": "Simulated", **spec},
            },
        )

    async def one_pass(self) -> Again:
        return await self.reconciler.reconcile("n", "e")

    async def settle(self, passes: int = 20) -> Again:
        for _ in range(passes):
            result = await self.one_pass()
            if result.after_seconds != 0:
                return result
        raise AssertionError(f"not settled after {passes} passes: {self.api.written()[-5:]}")

    def change(self, plural: str, name: str, **patch: Any) -> None:
        self.api.objects[plural, name] = merged(self.api.objects[plural, name], patch)

    def serve(self) -> None:
        """What kubelet and monitor would report of each pod."""
        for pod in self.api.of(PODS):
            name = pod["metadata"]["name"]
            row = {"name": name, "uid": pod["metadata"]["uid"], "state": "Serving"}
            row["ranks"] = [{"rank": 0, "incarnation": 1, "state": "Serving", "maxContextLength": 4096}]
            self.change(PODS, name, status={"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
            self.change(REPLICAS, pod["metadata"]["labels"][names.LABEL_REPLICA], status={"members": [row]})

    def condition(self, kind: str) -> tuple[str, str]:
        status = self.api.objects["inferenceengines", "e"]["status"]
        return next(((found["status"], found["reason"]) for found in status["conditions"] if found["type"] == kind), ("", ""))


@pytest.fixture
async def serving() -> Stage:
    stage = Stage()
    await stage.settle()
    stage.serve()
    await stage.settle()
    assert stage.condition("Ready") == ("True", reasons.ALL_REPLICAS_SERVE)
    stage.api.written()
    return stage


async def test_a_settled_world_is_not_written(serving: Stage) -> None:
    assert (await serving.one_pass()).after_seconds == 600
    assert serving.api.written() == []


async def test_a_succeeded_replica_gets_no_status_after_its_deletion(serving: Stage) -> None:
    (old,) = serving.api.of(REPLICAS)
    serving.change("inferenceengines", "e", spec={"context": {"maxLength": 64}}, metadata={"generation": 2})
    await serving.settle()  # raises when a status is written to what is no more
    assert (REPLICAS, old["metadata"]["name"]) not in serving.api.objects
    assert len(serving.api.of(REPLICAS)) == 1


@pytest.mark.parametrize("plural", [REPLICAS, "inferenceengines"])
async def test_an_object_that_vanishes_during_the_pass_is_no_failure_of_the_api(serving: Stage, plural: str) -> None:
    def vanish(verb: str, kind: str, name: str) -> None:
        if (verb, kind) == ("status", plural):
            serving.api.objects.pop((kind, name), None)

    for pod in serving.api.of(PODS):
        serving.change(PODS, pod["metadata"]["name"], status={"conditions": []})
    serving.api.before_write = vanish
    result = await serving.one_pass()
    assert ("status", plural) in [request[:2] for request in serving.api.written()]
    assert result.failed, "come again, later each time"


async def test_what_an_apply_cannot_change_is_not_tried_again_at_once(serving: Stage) -> None:
    serving.change("services", "e", spec={"type": "NodePort"})

    apply = serving.api.apply

    async def in_vain(manifest: dict[str, Any]) -> dict[str, Any]:
        await apply(manifest)  # and a webhook has its own way with services
        serving.change("services", "e", spec={"type": "NodePort"})
        return serving.api.objects["services", "e"]

    serving.api.apply = in_vain
    assert (await serving.one_pass()).after_seconds == 600


async def test_a_foreign_port_and_owner_on_a_service_are_left_alone(serving: Stage) -> None:
    service = serving.api.objects["services", "e"]
    port = {"name": "extra", "port": 9999, "protocol": "TCP"}
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "x"}
    service["spec"]["ports"].insert(0, port)
    service["metadata"]["ownerReferences"].append(owner)
    await serving.one_pass()
    assert serving.api.written() == []


async def test_a_role_with_more_rights_is_put_right(serving: Stage) -> None:
    (role,) = serving.api.of("roles")
    role["rules"].append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]})
    await serving.one_pass()
    assert ("apply", "roles", role["metadata"]["name"]) in serving.api.written()
    assert len(serving.api.of("roles")[0]["rules"]) == 2


async def test_a_replica_deleted_by_hand_gets_its_pod_only_when_the_rights_of_its_namesake_are_gone(serving: Stage) -> None:
    (old,) = serving.api.of(REPLICAS)
    name = old["metadata"]["name"]
    del serving.api.objects[REPLICAS, name]  # the garbage collector has not come yet
    await serving.settle()
    (new,) = serving.api.of(REPLICAS)
    assert new["metadata"]["name"] == name
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert all(pod["metadata"]["ownerReferences"][0]["uid"] == old["metadata"]["uid"] for pod in serving.api.of(PODS))
    assert serving.condition("Ready") == ("False", reasons.NAME_TAKEN)
    for key, raw in list(serving.api.objects.items()):
        if any(owner["uid"] == old["metadata"]["uid"] for owner in raw["metadata"].get("ownerReferences", ())):
            del serving.api.objects[key]
    await serving.settle()
    serving.serve()
    await serving.settle()
    assert serving.condition("Ready")[0] == "True"


def pod_refusal(message: str) -> Any:
    def refuse(verb: str, plural: str, name: str) -> ApiError | None:
        return Forbidden("POST pods", status=403, message=message) if plural == PODS and verb in ("create", "dry-run") else None

    return refuse


@pytest.mark.parametrize(
    ("message", "ends"),
    [
        ('violates PodSecurity "restricted:latest": runAsNonRoot', False),
        ("[minimum memory usage per Container is 64Mi]", False),
        ("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1", True),  # ending the old one makes room
        ('error looking up service account n/default: serviceaccount "default" not found', True),
    ],
)
async def test_a_rollout_ends_nothing_when_its_pods_are_forbidden(serving: Stage, message: str, ends: bool) -> None:
    (old,) = serving.api.of(REPLICAS)
    serving.change("inferenceengines", "e", spec={"context": {"maxLength": 64}}, metadata={"generation": 2})
    serving.api.refuse = pod_refusal(message)
    await serving.one_pass()
    assert ("end" in serving.api.objects[REPLICAS, old["metadata"]["name"]]["spec"]) is ends
    if not ends:
        assert serving.condition("Ready") == ("False", reasons.FORBIDDEN)
