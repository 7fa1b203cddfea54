"""A kubelet, a launcher and a monitor in one thread, by script: walks the pods of one namespace through their lives.

The one job: be what the operator sees of a node. A pod is bound, its monitor stores its row, it turns Ready; a deleted one goes;
`fate` says what happens to a pod otherwise. It never touches anything but pods and their rows.
Not done here: scheduling, images, volumes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from kubernetes import client as kubernetes_client
from kubernetes.client.exceptions import ApiException

Pod = dict[str, Any]
POLL_SECONDS = 0.03
GROUP, VERSION, REPLICAS = "enginehouse.dev", "v1alpha1", "enginereplicas"


def serve(_: Pod) -> str:
    return "serve"


class ScriptedKubelet:
    """Runs while the context lasts. ``fate`` may be replaced at any time: a function of the pod that gives
    ``serve``, ``hold`` (leave it Pending), ``die``, ``refuse`` (exit code 78) or ``report`` (another plays the node)."""

    def __init__(self, api: kubernetes_client.ApiClient, namespace: str, node: str) -> None:
        self._core = kubernetes_client.CoreV1Api(api)
        self._api = api
        self._namespace = namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._done: dict[str, str] = {}
        self.fate: Callable[[Pod], str] = serve
        self._node = node
        self.context_length = 8192
        self.errors: list[str] = []

    def __enter__(self) -> ScriptedKubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(10)
        assert self.errors == []

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                for pod in self.pods():
                    self._step(pod)
            except ApiException as error:
                if error.status not in (403, 404, 409):  # the object, or the namespace, went meanwhile
                    self.errors.append(str(error))

    def pods(self) -> list[Pod]:
        answer = self._core.list_namespaced_pod(self._namespace, _preload_content=False, _request_timeout=10)
        items: list[Pod] = json.loads(answer.data)["items"]
        return items

    def _step(self, pod: Pod) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if "deletionTimestamp" in pod["metadata"]:
            self._core.delete_namespaced_pod(name, self._namespace, grace_period_seconds=0, _request_timeout=10)
            return
        fate = self.fate(pod)
        if fate == "hold" or self._done.get(uid) == fate:
            return
        if fate == "report":
            if pod["status"].get("phase") == "Running":
                self.tell(pod)
                self._done[uid] = fate
            return
        if not pod["spec"].get("nodeName") and uid not in self._done:
            binding = {"metadata": {"name": name}, "target": {"kind": "Node", "name": self._node}}
            self._core.create_namespaced_binding(self._namespace, binding, _preload_content=False, _request_timeout=10)
        if fate == "serve":
            self.tell(pod)
            self._status(name, phase="Running", podIP="10.0.0.1", conditions=[{"type": "Ready", "status": "True"}])
        elif fate == "die":
            self._end(name, exit_code=137, words=words("Signal", "killed", signal=9))
        elif fate == "refuse":
            self._end(name, exit_code=78, words=words("ContextTooSmall", "only 100 tokens fit, 2048 are asked for"))
        self._done[uid] = fate

    def tell(self, pod: Pod, *, lengths: dict[int, int] | None = None, incarnation: int = 1, **changes: Any) -> None:
        """Write the pod's row, as its monitor would. ``changes`` are rank states by ``rank_1="Dead"``, and ``failures``."""
        metadata = pod["metadata"]
        owner = metadata["ownerReferences"][0]
        ranks = [
            {
                "rank": rank,
                "incarnation": incarnation,
                "state": changes.get(f"rank_{rank}", "Serving"),
                "maxContextLength": (lengths or {}).get(rank, self.context_length),
                "kvBlocks": 512,
            }
            for rank in ranks_of(pod)
        ]
        row = {"name": metadata["name"], "uid": metadata["uid"], "state": "Serving", "address": "10.0.0.1", "ranks": ranks}
        row["failures"] = changes.get("failures", [])
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": owner["kind"],
            "metadata": {"name": owner["name"], "uid": owner["uid"]},
            "status": {"members": [row]},
        }
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self._namespace}/{REPLICAS}/{owner['name']}/status"
        self._api.call_api(
            *self._api.param_serialize(
                "PATCH",
                path,
                query_params=[("fieldManager", metadata["name"]), ("force", "true")],
                header_params={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
            )
        )

    def delete(self, pod: Pod) -> None:
        """As somebody with kubectl would."""
        self._core.delete_namespaced_pod(pod["metadata"]["name"], self._namespace, _request_timeout=10)

    def _end(self, name: str, *, exit_code: int, words: dict[str, Any]) -> None:
        ended = {"exitCode": exit_code, "reason": "Error", "message": json.dumps(words), "finishedAt": "2026-01-01T00:00:00Z"}
        container = {
            "name": "engine",
            "image": "e",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": ended},
        }
        self._status(name, phase="Failed", containerStatuses=[container], conditions=[{"type": "Ready", "status": "False"}])

    def _status(self, name: str, **status: Any) -> None:
        self._core.patch_namespaced_pod_status(name, self._namespace, {"status": status}, _request_timeout=10)


def ranks_of(pod: Pod) -> list[int]:
    """All for the leader, which has the engine cores; for a worker those of its workers."""
    flags = dict(argument.split("=", 1) for argument in pod["spec"]["containers"][0]["args"])
    member, held = int(flags.get("--member", 0)), int(flags.get("--workers-per-member", 0))
    if member == 0:
        return list(range(int(flags["--data-parallel"])))
    of_rank = int(flags["--tensor-parallel"]) * int(flags["--pipeline-parallel"])
    return sorted({worker // of_rank for worker in range(member * held, (member + 1) * held)})


def words(class_: str, message: str, *, signal: int | None = None) -> dict[str, Any]:
    """The launcher's termination message."""
    return {"class": class_, "message": message, "role": "engine-core", "rank": 0, "incarnation": 1, "pid": 17, "signal": signal}
