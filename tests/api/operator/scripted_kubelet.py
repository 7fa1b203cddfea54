"""A kubelet, a launcher and a monitor in one thread, by script: walks the pods of one namespace through their lives.

The one job: be what the operator sees of a node. A pod is bound, its monitor stores its row, it turns Ready; a deleted one says
that it drains, and goes; `fate` and `lingers` say what happens to a pod otherwise. It touches pods and their rows alone.
Not done here: scheduling, images, volumes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from kubernetes import client as kubernetes_client
from kubernetes.client.exceptions import ApiException
from scripted_ray import ScriptedRay, flags_of, leads_ray

Pod = dict[str, Any]
POLL_SECONDS = 0.1
GROUP, VERSION, REPLICAS = "enginehouse.dev", "v1alpha1", "enginereplicas"


def serve(_: Pod) -> str:
    return "serve"


class ScriptedKubelet:
    """Runs while the context lasts. ``fate`` may be replaced at any time: a function of the pod that gives
    ``serve``, ``hold`` (leave it Pending), ``load`` (it runs and is not ready), ``die``, ``refuse`` (exit code 78) or ``report``
    (another plays the node).
    ``lingers`` as well: whether a pod that is being deleted drains on."""

    def __init__(self, api: kubernetes_client.ApiClient, namespace: str, node: str) -> None:
        self._core = kubernetes_client.CoreV1Api(api)
        self._objects = kubernetes_client.CustomObjectsApi(api)
        self._api = api
        self._namespace = namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._done: dict[str, str] = {}
        self._born: set[str] = set()
        self._rows: dict[str, dict[str, Any]] = {}
        """As told last, by pod UID."""
        self._one_row_at_a_time = threading.Lock()
        self._one_pod_at_a_time = threading.RLock()
        """Or a pod that a test ends while it is being started would turn out to run."""
        self.fate: Callable[[Pod], str] = serve
        self.lingers: Callable[[Pod], bool] = lambda _: False
        self.node = node
        """Where pods are bound to from now on."""
        self.lost_nodes: set[str] = set()
        """Nobody says or does anything there."""
        self.has_room: Callable[[int], bool] = lambda _: True
        self.has_drained: Callable[[int], bool] = lambda _: True
        """Of ranks that come and go: see :class:`ScriptedRay`."""
        self._rays: dict[str, ScriptedRay] = {}
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
                    with self._one_pod_at_a_time:
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
        if pod["spec"].get("nodeName") in self.lost_nodes:
            return
        if "deletionTimestamp" in pod["metadata"]:
            # One that is deleted by force is to be seen so for a moment, and is killed without a word.
            if pod["metadata"].get("deletionGracePeriodSeconds"):
                self._say_that_it_drains(pod)
            if not self.lingers(pod):
                self._core.delete_namespaced_pod(name, self._namespace, grace_period_seconds=0, _request_timeout=10)
            return
        fate = self.fate(pod)
        if fate == "serve" and self._done.get(uid) == fate and leads_ray(pod):
            self._lead(pod)
        if fate == "hold" or self._done.get(uid) == fate:
            return
        if fate == "report":
            if pod["status"].get("phase") == "Running":
                self.tell(pod)
                self._done[uid] = fate
            return
        if not pod["spec"].get("nodeName") and uid not in self._done:
            binding = {"metadata": {"name": name, "uid": uid}, "target": {"kind": "Node", "name": self.node}}
            self._core.create_namespaced_binding(self._namespace, binding, _preload_content=False, _request_timeout=10)
        if fate == "serve":
            if leads_ray(pod):
                self._lead(pod)
            elif uid not in self._born:
                # Once: when what follows is tried again, a test may have told something else of this pod.
                self.tell(pod)
                self._born.add(uid)
            self._status(name, phase="Running", podIP="10.0.0.1", conditions=[{"type": "Ready", "status": "True"}])
        elif fate == "load":
            self.tell(pod, state="Starting", **{f"rank_{rank}": "Starting" for rank in ranks_of(pod)})
            self._status(name, phase="Running", podIP="10.0.0.1", conditions=[{"type": "Ready", "status": "False"}])
        elif fate == "die":
            self.end(pod, exit_code=137, words=words("Signal", "killed", signal=9))
        elif fate == "refuse":
            self.end(pod, exit_code=78, words=words("ContextTooSmall", "only 100 tokens fit, 2048 are asked for"))
        self._done[uid] = fate

    def _lead(self, pod: Pod) -> None:
        """What the leader's launcher makes of the number of ranks that its replica has now, and of the members that have joined."""
        metadata = pod["metadata"]
        owner = metadata["ownerReferences"][0]["name"]
        replica = self._objects.get_namespaced_custom_object(GROUP, VERSION, self._namespace, REPLICAS, owner)
        joined = {
            int(found["metadata"]["labels"][f"{GROUP}/ordinal"])
            for found in self.pods()
            if found["metadata"]["ownerReferences"][0]["name"] == owner
            and "deletionTimestamp" not in found["metadata"]
            and found["metadata"]["uid"] in self._rows
            and found["status"].get("phase") == "Running"
        }
        ray = self._rays.setdefault(metadata["uid"], ScriptedRay(pod))
        data = replica["spec"]["data"]
        told = ray.move(data, joined=joined | {0}, has_room=self.has_room, has_drained=self.has_drained)
        row = {"name": metadata["name"], "uid": metadata["uid"], "state": "Serving", "address": "10.0.0.1", "failures": [], **told}
        with self._one_row_at_a_time:
            if self._rows.get(metadata["uid"]) != row:
                self._store(pod, row)

    def tell(self, pod: Pod, *, lengths: dict[int, int] | None = None, incarnation: int = 1, **changes: Any) -> None:
        """Write the pod's row, as its monitor would. ``changes``: ``state``, ``failures``, states of ranks by ``rank_1="Dead"``."""
        metadata = pod["metadata"]
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
        row |= {"state": changes.get("state", "Serving"), "failures": changes.get("failures", [])}
        with self._one_row_at_a_time:
            self._store(pod, row)

    def _say_that_it_drains(self, pod: Pod) -> None:
        with self._one_row_at_a_time:
            row = self._rows.get(pod["metadata"]["uid"])
            if row is None or row["state"] != "Serving":
                return
            ranks = [rank | ({"state": "Draining"} if rank["state"] == "Serving" else {}) for rank in row["ranks"]]
            try:
                self._store(pod, row | {"state": "Draining", "ranks": ranks})
            except ApiException as error:
                if error.status not in (404, 409):  # its replica is gone already
                    raise

    def _store(self, pod: Pod, row: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        owner = metadata["ownerReferences"][0]
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
        self._rows[metadata["uid"]] = row

    def delete(self, pod: Pod) -> None:
        """As somebody with kubectl would."""
        self._core.delete_namespaced_pod(pod["metadata"]["name"], self._namespace, _request_timeout=10)

    def end(self, pod: Pod, *, exit_code: int, words: dict[str, Any]) -> None:
        """The engine container is over, with these last words."""
        ended = {"exitCode": exit_code, "reason": "Error", "message": json.dumps(words), "finishedAt": "2026-01-01T00:00:00Z"}
        container = {
            "name": "engine",
            "image": "e",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": ended},
        }
        with self._one_pod_at_a_time:
            self._status(
                pod["metadata"]["name"],
                phase="Failed",
                containerStatuses=[container],
                conditions=[{"type": "Ready", "status": "False"}],
            )

    def _status(self, name: str, **status: Any) -> None:
        self._core.patch_namespaced_pod_status(name, self._namespace, {"status": status}, _request_timeout=10)


def ranks_of(pod: Pod) -> list[int]:
    """All for the leader, which has the engine cores; for a worker those of its workers."""
    flags = flags_of(pod)
    member, held = int(flags.get("--member", 0)), int(flags.get("--workers-per-member", 0))
    if member == 0:
        return list(range(int(flags["--data-parallel"])))
    of_rank = int(flags["--tensor-parallel"]) * int(flags["--pipeline-parallel"])
    return sorted({worker // of_rank for worker in range(member * held, (member + 1) * held)})


def failure(**changes: Any) -> dict[str, Any]:
    """A record as a monitor writes it: rank 1's engine core was killed."""
    record = {"role": "engine-core", "rank": 1, "incarnation": 1, "pid": 17, "signal": 9, "class": "Signal", "message": "killed"}
    return record | {"detectedBy": "Pipe", "detectedTime": "2026-01-01T00:00:00.000000Z"} | changes


def now() -> str:
    """As a monitor writes times."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def words(class_: str, message: str, *, signal: int | None = None) -> dict[str, Any]:
    """The launcher's termination message."""
    return {"class": class_, "message": message, "role": "engine-core", "rank": 0, "incarnation": 1, "pid": 17, "signal": signal}
