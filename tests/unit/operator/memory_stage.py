"""One engine and the operator's passes over it, on an API server in memory; kubelet and monitor by hand.

The one job: give the tests of whole passes, and of what follows from their conditions, the objects that the operator really writes.
Not done here: deciding what is right.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from memory_api import MemoryApi

from enginehouse_operator import names
from enginehouse_operator.act import Actor
from enginehouse_operator.cache import Cache
from enginehouse_operator.events import Events
from enginehouse_operator.queue import Again
from enginehouse_operator.reconcile import Reconciler
from enginehouse_operator.wanted.pods import PodSettings

NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)
REPLICAS, PODS = "enginereplicas", "pods"


class Stage:
    """One engine and the operator's passes over it."""

    def __init__(self, **spec: Any) -> None:
        self.api = MemoryApi()
        self.restart()
        self.engine = self.api.put(
            "inferenceengines",
            {
                "apiVersion": names.API_VERSION,
                "kind": names.ENGINE_KIND,
                "metadata": {"name": "e"},
                "spec": {"executor": "Simulated", **spec},
            },
        )

    def restart(self) -> None:
        """An operator that knows nothing of earlier passes."""
        events = Events(self.api, lambda: NOW)
        self.cache = Cache()
        actor = Actor(self.api, self.cache, events, PodSettings(engine_image="e:1", monitor_image="m:1", pull_policy="Never"))
        self.reconciler = Reconciler(self.api, self.cache, actor, events, clock=lambda: NOW)

    async def one_pass(self, *, reads: bool = True) -> Again:
        """No watch brings here what others have changed, so it is read, unless that is what a test is about."""
        if reads:
            self.cache.doubt(("n", "e"))
        return await self.reconciler.reconcile("n", "e")

    async def settle(self, passes: int = 20) -> Again:
        for _ in range(passes):
            result = await self.one_pass()
            if result.after_seconds != 0:
                return result
        raise AssertionError(f"not settled after {passes} passes: {self.api.written()[-5:]}")

    def change(self, plural: str, name: str, **patch: Any) -> None:
        self.api.change(plural, name, patch)

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


def leader_says(stage: Stage, ranks: dict[int, str], lacking: dict[int, str] | None = None, *, waiting: str = "Lacking") -> None:
    """Pods are there and ready; the leader's row has these ranks, what their only bundles lack, and the state of such groups."""
    members = []
    for pod in stage.api.of(PODS):
        leads = pod["metadata"]["labels"][names.LABEL_ROLE] == names.LEADER
        row: dict[str, Any] = {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"], "state": "Serving"}
        if leads:
            row["ranks"] = [{"rank": rank, "incarnation": 1, "state": state} for rank, state in ranks.items()]
            groups = {rank: {"index": 0} | ({"lacking": lacking[rank]} if lacking and rank in lacking else {}) for rank in ranks}
            row["placement"] = [
                {"rank": rank, "state": waiting if "lacking" in bundle else "Placed", "bundles": [bundle]}
                for rank, bundle in groups.items()
            ]
        members.append(row)
        stage.change(PODS, row["name"], status={"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    stage.change(REPLICAS, stage.api.of(REPLICAS)[0]["metadata"]["name"], status={"members": members})
