"""One namespace as a stage: engines, the operator, what became of them, and what the API server counted.

The one job: the words that the tests of this folder are written in. The invariant kept: its operators end with the test.
Not done here: deciding what is right.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes import client as kubernetes_client
from kubernetes.client.exceptions import ApiException
from operator_process import OperatorProcess, Zygote
from scripted_kubelet import ScriptedKubelet

from audit_log import whole_lines

GROUP, VERSION = "enginehouse.dev", "v1alpha1"
POLL_SECONDS = 0.05
DEADLINE_SECONDS = 45.0
QUIET_SECONDS = 0.6
"""No write for so long, and everything as wanted: settled. The operator's own delays are longer only after failures."""

Raw = dict[str, Any]


class Stage:
    def __init__(
        self,
        api: kubernetes_client.ApiClient,
        namespace: str,
        kubelet: ScriptedKubelet,
        zygote: Zygote,
        audit_log: Path | None,
    ) -> None:
        self.api = api
        self.namespace = namespace
        self.kubelet = kubelet
        self._zygote = zygote
        self._audit_log = audit_log
        self._audit_from = audit_log.stat().st_size if audit_log is not None else 0
        self._objects = kubernetes_client.CustomObjectsApi(api)
        self._core = kubernetes_client.CoreV1Api(api)
        self._operators: list[OperatorProcess] = []
        self._log = Path(tempfile.mkstemp(prefix="operator-", suffix=".log")[1])

    # the operator

    def operator(
        self, *, die_after: int | None = None, engine_image: str = "engine:1", takes_lease: bool = True, metrics_port: int = 0
    ) -> OperatorProcess:
        """Start one for this namespace. The lease of one that was killed is taken away, or the next would wait for it to expire."""
        if takes_lease:
            self._drop_lease()
        arguments = [
            f"--engine-image={engine_image}",
            "--monitor-image=monitor:1",
            f"--namespace={self.namespace}",
            "--health-port=0",
            f"--metrics-port={metrics_port}",
        ]
        started = self._zygote.start(arguments, log=self._log, die_after=die_after)
        self._operators.append(started)
        return started

    def _drop_lease(self) -> None:
        try:
            kubernetes_client.CoordinationV1Api(self.api).delete_namespaced_lease("enginehouse-operator", self.namespace)
        except ApiException as error:
            if error.status != 404:
                raise

    @property
    def log(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        for operator in self._operators:
            operator.kill()
        assert "Traceback" not in self.log, self.log[-5000:]
        self._log.unlink()

    # engines

    def apply(self, name: str = "one", **spec: Any) -> None:
        """Create it, or merge into its spec."""
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "InferenceEngine",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"model": {"uri": "file:///models/m"}, "drain": {"timeoutSeconds": 1}} | spec,
        }
        try:
            self._objects.create_namespaced_custom_object(GROUP, VERSION, self.namespace, "inferenceengines", body)
        except ApiException as error:
            if error.status != 409:
                raise
            self.patch(name, spec=spec)

    def patch(self, name: str = "one", **body: Any) -> None:
        self._objects.patch_namespaced_custom_object(GROUP, VERSION, self.namespace, "inferenceengines", name, body)

    def delete(self, name: str = "one") -> None:
        self._objects.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, "inferenceengines", name)

    def engine(self, name: str = "one") -> Raw:
        found: Raw = self._objects.get_namespaced_custom_object(GROUP, VERSION, self.namespace, "inferenceengines", name)
        return found

    def replicas(self) -> list[Raw]:
        found = self._objects.list_namespaced_custom_object(GROUP, VERSION, self.namespace, "enginereplicas")["items"]
        return sorted(found, key=lambda raw: (raw["spec"]["index"], raw["spec"]["epoch"]))

    def pods(self) -> list[Raw]:
        return self.kubelet.pods()

    def evict(self, pod: Raw) -> bool:
        """As a node drain would. False: the budget of disruptions does not allow it now."""
        name = pod["metadata"]["name"]
        try:
            self._core.create_namespaced_pod_eviction(name, self.namespace, {"metadata": {"name": name}})
        except ApiException as error:
            if error.status != 429:
                raise
            return False
        return True

    def list(self, path: str) -> list[Raw]:
        answer = self.api.call_api(
            *self.api.param_serialize(
                "GET",
                path.format(namespace=self.namespace),
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )
        )
        items: list[Raw] = json.loads(answer.read())["items"]
        return items

    def condition(self, kind: str, name: str = "one") -> Raw | None:
        status = self.engine(name).get("status", {})
        return next((found for found in status.get("conditions", ()) if found["type"] == kind), None)

    # waiting

    def until(self, what: Callable[[], Any], *, saying: str, seconds: float = DEADLINE_SECONDS) -> Any:
        """What it returns, once that is true."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            if time.monotonic() > deadline:
                state = json.dumps(self.picture(), indent=1)
                raise TimeoutError(f"not within {seconds} s: {saying}\n{state}\n{self.log[-4000:]}")
            time.sleep(POLL_SECONDS)
        return found

    def until_condition(self, kind: str, status: str, reason: str | None = None, name: str = "one") -> Raw:
        """Of the present generation."""

        def there() -> Raw | None:
            engine, found = self.engine(name), self.condition(kind, name)
            right = found is not None and found["status"] == status and reason in (None, found["reason"])
            return found if right and found["observedGeneration"] == engine["metadata"]["generation"] else None

        found: Raw = self.until(there, saying=f"{kind}={status} {reason or ''}")
        return found

    def until_settled(self, good: Callable[[], bool]) -> None:
        """``good`` holds, and the picture of the world has not changed for a while since it did."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        last: list[str] | None = None
        since = time.monotonic()
        while last is None or time.monotonic() - since < QUIET_SECONDS or not good():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not settled\n{json.dumps(self.picture(), indent=1)}\n{self.log[-4000:]}")
            time.sleep(3 * POLL_SECONDS)
            # The whole world is asked for only once there is something to wait out.
            now = self.versions() if last is not None or good() else None
            if now != last:
                last, since = now, time.monotonic()

    def versions(self) -> list[str]:
        return sorted(raw["metadata"]["uid"] + raw["metadata"]["resourceVersion"] for raw in self._everything())

    def _everything(self) -> list[Raw]:
        return [raw for path in _PATHS.values() for raw in self.list(path) if _ours(raw)]

    # what became of it

    def picture(self) -> dict[str, Any]:
        """The world without what differs from run to run: names by place, no UIDs, times, versions or addresses."""
        places = {raw["metadata"]["name"]: f"{raw['spec']['index']}/{raw['spec']['epoch']}" for raw in self.replicas()}
        pods = {pod["metadata"]["name"]: _pod(pod, places) for pod in self.pods()}
        found: dict[str, Any] = {
            "engines": {raw["metadata"]["name"]: _engine(raw, places) for raw in self.list(_PATHS["engines"])},
            "replicas": {places[raw["metadata"]["name"]]: _replica(raw) for raw in self.replicas()},
            "pods": sorted(pods.values(), key=str),
        }
        found["secrets"] = len(self.list(_PATHS["secrets"]))
        for kind in ("services", "budgets", "accounts", "roles", "bindings"):
            names = [raw["metadata"]["name"] for raw in self.list(_PATHS[kind]) if _ours(raw)]
            found[kind] = sorted(places.get(name, name) for name in names)
        return found

    def garbage(self) -> list[str]:
        """Names of what Kubernetes has yet to collect: rights and secrets whose replica is gone."""
        places = {raw["metadata"]["name"] for raw in self.replicas()}
        rights = [
            raw["metadata"]["name"] for kind in ("accounts", "roles", "bindings") for raw in self.list(_PATHS[kind]) if _ours(raw)
        ]
        owned = {raw["metadata"]["uid"] for raw in self.replicas()}
        secrets = self.list(_PATHS["secrets"])
        left = [raw["metadata"]["name"] for raw in secrets if raw["metadata"]["ownerReferences"][0]["uid"] not in owned]
        return sorted(set(rights) - places) + left

    # what the API server counted

    def audit(self) -> list[Raw]:
        """Finished requests about this namespace since the stage was set."""
        assert self._audit_log is not None, "needs a cluster of ours"
        mine = self.namespace.encode()
        events = [json.loads(line) for line in whole_lines(self._audit_log, since=self._audit_from) if mine in line]
        return [event for event in events if (event.get("objectRef") or {}).get("namespace") == self.namespace]

    def writes(self) -> list[str]:
        """Successful writes of the operator, its Lease aside."""
        return [
            f"{event['verb']} {event['objectRef']['resource']}/{event['objectRef'].get('subresource', '')}"
            for event in self.audit()
            if event["userAgent"].startswith(("enginehouse-operator", "kopf"))
            and event["verb"] in ("create", "update", "patch", "delete")
            and event["objectRef"]["resource"] != "leases"
            and event["responseStatus"]["code"] < 300
            and "dryRun" not in event["requestURI"]
        ]

    def reads(self) -> int:
        """How often the operator has read engines, the watch aside: where its cache has doubts, as after a change by somebody."""
        return sum(
            event["userAgent"].startswith("enginehouse-operator")
            and event["verb"] in ("get", "list")
            and event["objectRef"]["resource"] == "inferenceengines"
            for event in self.audit()
        )

    def births(self) -> Counter[str]:
        """Successful creations of replicas and pods by whom ever, by name."""
        return Counter(
            event["objectRef"]["resource"] + "/" + event["objectRef"]["name"]
            for event in self.audit()
            if event["verb"] == "create"
            and event["objectRef"]["resource"] in ("enginereplicas", "pods")
            and "subresource" not in event["objectRef"]
            and "dryRun" not in event["requestURI"]
            and event["responseStatus"]["code"] == 201
        )


_PATHS = {
    "engines": f"/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/inferenceengines",
    "replicas": f"/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/enginereplicas",
    "pods": "/api/v1/namespaces/{namespace}/pods",
    "services": "/api/v1/namespaces/{namespace}/services",
    "budgets": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "secrets": "/api/v1/namespaces/{namespace}/secrets",
    "accounts": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "roles": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "bindings": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
}


def _ours(raw: Raw) -> bool:
    return raw["metadata"]["name"] != "default"


def _conditions(raw: Raw) -> dict[str, str]:
    return {found["type"]: f"{found['status']} {found['reason']}" for found in raw.get("status", {}).get("conditions", ())}


def _engine(raw: Raw, places: dict[str, str]) -> Raw:
    status = raw.get("status", {})
    kept = ("replicas", "readyReplicas", "updatedReplicas", "selector", "currentRevision", "maxContextLength", "restarts")
    found = {key: status.get(key) for key in kept} | {"conditions": _conditions(raw)}
    if "contextLimitedBy" in status:
        limit = status["contextLimitedBy"]
        found["contextLimitedBy"] = f"{places.get(limit['replica'], 'gone')} rank {limit['rank']}"
    return found


def _replica(raw: Raw) -> Raw:
    spec, end = raw["spec"], raw["spec"].get("end")
    states = [row["state"] for row in raw.get("status", {}).get("members", ())]
    return {
        "engine": spec["engine"],
        "data": spec.get("data"),
        "failures": len(spec.get("failures", ())),
        "end": end and end["reason"],
        "members": states,
        "conditions": _conditions(raw),
    }


def _pod(raw: Raw, places: dict[str, str]) -> Raw:
    labels = {key: value for key, value in raw["metadata"]["labels"].items() if not key.endswith("/replica")}
    return {
        "replica": places.get(raw["metadata"]["ownerReferences"][0]["name"], "gone"),
        "labels": labels,
        "phase": raw["status"].get("phase"),
        "images": [container["image"] for container in raw["spec"]["containers"] + raw["spec"]["initContainers"]],
    }
