"""The monitors of members on nodes without a kubelet: each member's row, in the name of its pod.

The one job: hear of a member that its node has made ready, and write once that its ranks serve, by server-side apply with the
rights of that pod's service account. Invariant: a row is written by nobody but the pod that it belongs to: the chart's admission
policy is in force. Not done here: deaths, drains.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

from first_times import Found, is_ready
from kubernetes_requests import Refused, Requests
from scale_contenders import NAMESPACE

_THREADS = 4
_REPLICAS = "/apis/enginehouse.dev/v1alpha1/namespaces/{namespace}/enginereplicas/{name}/status"


class ScriptedMonitors:
    """Work while the context lasts. ``hear`` is told of every event of a pod, by one watch."""

    def __init__(self, kubeconfig: Path) -> None:
        self._requests = Requests(kubeconfig)
        self._waiting: queue.SimpleQueue[Found | None] = queue.SimpleQueue()
        self._known: set[str] = set()
        self._threads = [threading.Thread(target=self._write, daemon=True) for _ in range(_THREADS)]
        self.errors: list[str] = []

    def __enter__(self) -> ScriptedMonitors:
        for thread in self._threads:
            thread.start()
        return self

    def hear(self, pod: Found) -> None:
        is_member = any(owner.kind == "EngineReplica" for owner in pod.metadata.owner_references)
        if is_member and pod.metadata.uid not in self._known and is_ready(pod):
            self._known.add(pod.metadata.uid)
            self._waiting.put(pod)

    def __exit__(self, *_: object) -> None:
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        while (pod := self._waiting.get()) is not None:
            (owner,) = pod.metadata.owner_references
            body = {
                "apiVersion": "enginehouse.dev/v1alpha1",
                "kind": "EngineReplica",
                "metadata": {"name": owner.name, "uid": owner.uid},
                "status": {"members": [_row(pod)]},
            }
            path = _REPLICAS.format(namespace=NAMESPACE, name=owner.name)
            try:
                self._requests.send(
                    "PATCH", f"{path}?fieldManager={pod.metadata.name}&force=true", body, headers=_in_the_name_of(pod, owner.name)
                )
            except (Refused, OSError) as error:
                self.errors.append(str(error))


def _in_the_name_of(pod: Found, account: str) -> dict[str, str]:
    """As a token that is bound to the pod."""
    return {
        "Content-Type": "application/apply-patch+yaml",
        "Impersonate-User": f"system:serviceaccount:{NAMESPACE}:{account}",
        "Impersonate-Group": "system:authenticated",
        "Impersonate-Extra-authentication.kubernetes.io%2Fpod-name": pod.metadata.name,
        "Impersonate-Extra-authentication.kubernetes.io%2Fpod-uid": pod.metadata.uid,
    }


def _row(pod: Found) -> dict[str, Any]:
    """Both members are of rank 0, whose two workers they hold."""
    rank = {"rank": 0, "incarnation": 1, "state": "Serving", "maxContextLength": 8192, "kvBlocks": 512}
    name, uid = pod.metadata.name, pod.metadata.uid
    return {"name": name, "uid": uid, "state": "Serving", "address": "10.0.0.1", "ranks": [rank], "failures": []}
