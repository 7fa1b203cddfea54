"""The node that the scripted kubelets' pods are bound to: present and alive, so that no controller of the cluster removes them.

Invariant: it heartbeats by its Lease while the context lasts, and is gone afterwards. Runs no pods.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from types import TracebackType

from kubernetes import client as kubernetes_client
from kubernetes.client.exceptions import ApiException

HEARTBEAT_SECONDS = 3.0
LEASES = "kube-node-lease"


class ScriptedNode:
    def __init__(self, api: kubernetes_client.ApiClient, name: str) -> None:
        self._core = kubernetes_client.CoreV1Api(api)
        self._coordination = kubernetes_client.CoordinationV1Api(api)
        self.name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ScriptedNode:
        self._core.create_node({"metadata": {"name": self.name}})
        self._core.patch_node_status(self.name, {"status": {"conditions": [self._ready()]}})
        self._coordination.create_namespaced_lease(
            LEASES, {"metadata": {"name": self.name}, "spec": {"holderIdentity": self.name, "renewTime": _now()}}
        )
        self._thread.start()
        return self

    def fall_silent(self) -> None:
        """From now on nothing is heard of it."""
        self._stop.set()
        self._thread.join(10)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.fall_silent()
        self._core.delete_node(self.name)
        self._coordination.delete_namespaced_lease(self.name, LEASES)

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._coordination.patch_namespaced_lease(self.name, LEASES, {"spec": {"renewTime": _now()}}, _request_timeout=10)
            except ApiException:
                continue  # the next beat may do

    def _ready(self) -> dict[str, str]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "type": "Ready",
            "status": "True",
            "reason": "Scripted",
            "message": "",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
