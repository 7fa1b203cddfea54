"""One engine on a real kubelet whose processes a test kills: made, followed through its history, looked at from this machine.

Invariant: every wait has a deadline, and its failure shows the engine's story. Does not judge what came of it.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import living_processes
from cluster_history import Event, History, Object, failure_words, is_true, rows
from example_model import mounted
from living_processes import PodProcess
from localkube.installation import Installation

READY_SECONDS = 240.0
PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.1
"""For what no event tells: processes and logs of this machine. Looking more often costs the engines that are looked at."""

MODEL = "simulated"
"""The name that all of them serve: a simulated engine's own."""

TWO_MEMBERS = {"executor": "Simulated", "parallelism": {"tensor": 2, "workersPerMember": 1}}


def simulated(name: str, *, drills: tuple[str, ...] = (), **spec: Any) -> Object:
    """The least that serves."""
    container = {"name": "engine", "args": [f"--drill={drill}" for drill in drills]}
    return _engine(name, {"executor": "Simulated", "template": {"spec": {"containers": [container]}}, **spec}, memory="512Mi")


def real(name: str, claim: str, **spec: Any) -> Object:
    """A core and a worker that runs the model that a claim has."""
    container = {"name": "engine", "volumeMounts": [{"name": "models", "mountPath": "/models"}]}
    overlay = {"volumes": [mounted(claim)], "containers": [container]}
    fields = {"executor": "Multiprocess", "model": {"uri": "file:///models", "servedName": MODEL}, "template": {"spec": overlay}}
    return _engine(name, {**fields, **spec}, memory="1536Mi")


def _engine(name: str, spec: Object, *, memory: str) -> Object:
    common = {
        "resources": {"limits": {"memory": memory}, "requests": {"cpu": "10m", "memory": "64Mi"}},
        "context": {"maxLength": 256},
        "drain": {"timeoutSeconds": 10},
    }
    return {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "metadata": {"name": name},
        "spec": {**common, **spec},
    }


@dataclass
class KilledEngine:
    """``name`` is its own; several live in one namespace."""

    installation: Installation
    history: History
    name: str
    seen_processes: dict[str, set[PodProcess]] = field(default_factory=dict)
    """By pod UID: all that :meth:`look` found."""

    def apply(self, manifest: Object) -> None:
        self._kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def delete(self) -> None:
        self._kubectl("delete", f"ie/{self.name}", "--wait=false", "--ignore-not-found")

    def delete_pod(self, pod: Object) -> None:
        self._kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")

    # What the API says

    @property
    def engine(self) -> Object:
        found = self.history.now("ie", self.name)
        return found[0] if found else {}

    @property
    def last_failure(self) -> Object:
        found: Object = self.engine.get("status", {}).get("lastFailure", {})
        return found

    @property
    def story(self) -> str:
        return self.history.story(self.name)

    def is_true(self, condition: str) -> bool:
        return is_true(self.engine, condition)

    def settled(self) -> bool:
        return self.is_true("Ready") and not self.is_true("Progressing")

    def has_succeeded(self, *, pods: int) -> bool:
        """A second replica serves with all of its pods, and none of the first is left. Ready alone may still tell of the first."""
        present, ended = self.pods(), self.ended_replicas()
        goes_on = [pod["metadata"]["labels"]["enginehouse.dev/replica"] not in ended and is_true(pod, "Ready") for pod in present]
        return (len(self.replicas()), len(ended), len(present)) == (2, 1, pods) and all(goes_on) and self.settled()

    def pods(self) -> list[Object]:
        """Leader first."""
        return sorted(self.history.now("pod", self.name), key=_role)

    def replicas(self) -> set[str]:
        """All that there ever were."""
        return {event.name for event in self.history.of("ier", self.name)}

    def ended_replicas(self) -> dict[str, Object]:
        """With how each one was ended. One that was ended twice, in two ways, is an error."""
        ends: dict[str, Object] = {}
        for event in self.history.of("ier", self.name):
            if end := event.seen["spec"].get("end"):
                assert ends.setdefault(event.name, end) == end, f"{event.name} was ended twice: {self.story}"
        return ends

    def failures(self) -> list[Object]:
        """All that any row ever told, once each."""
        found: dict[str, Object] = {}
        for event in self.history.of("ier", self.name):
            for row in rows(event.seen):
                for failure in row.get("failures", ()):
                    found[f"{event.name} {row['name']} {failure_words(failure)}"] = failure
        return list(found.values())

    def rank_words(self) -> list[tuple[int, int, str]]:
        """Rank, incarnation and state in the rows of the replicas that go on."""
        living = [replica for replica in self.history.now("ier", self.name) if not replica["spec"].get("end")]
        parts = [rank for replica in living for row in rows(replica) for rank in row.get("ranks", ())]
        return sorted((part["rank"], part.get("incarnation", 0), part.get("state", "")) for part in parts)

    def pod_events(self) -> list[Event]:
        return self.history.of("pod", self.name)

    def until(self, what: str, check: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
        """Asked again whenever the API shows something new."""
        return self.history.until(f"{self.name}: {what}", check, seconds=seconds, engine=self.name)

    def until_ready(self) -> None:
        self.until("Ready", self.settled, seconds=READY_SECONDS)

    # What this machine says

    def look(self) -> dict[str, list[PodProcess]]:
        """The processes of each of its pods, by UID."""
        found = {pod["metadata"]["uid"]: self.processes(pod) for pod in self.pods()}
        for uid, processes in found.items():
            self.seen_processes.setdefault(uid, set()).update(processes)
        return found

    def processes(self, pod: Object) -> list[PodProcess]:
        return living_processes.processes(self.installation.cluster, pod["metadata"]["uid"])

    def find(self, role: str, *, rank: int | None = None, incarnation: int | None = None) -> PodProcess | None:
        """The last one of a role: of workers the one that is farthest from the leader."""
        found = [process for processes in self.look().values() for process in processes if process.role == role]
        found = [process for process in found if rank in (None, process.rank) and incarnation in (None, process.incarnation)]
        return max(found, key=lambda process: (process.rank or 0, process.index), default=None)

    def the(self, role: str, *, rank: int | None = None) -> PodProcess:
        found = self.find(role, rank=rank)
        assert found is not None, f"{self.name} has no {role}\n{self.story}"
        return found

    def pod_of(self, process: PodProcess) -> str:
        """UID of the pod that it lives in."""
        return next(uid for uid, processes in self.seen_processes.items() if process in processes)

    def until_here(self, what: str, check: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
        """The same as :meth:`until`, for what only this machine knows."""
        deadline = time.monotonic() + seconds
        while not (answer := check()):
            assert time.monotonic() < deadline, f"{self.name}: not within {seconds:g} s: {what}\n{self.story}\n{self.logs()}"
            time.sleep(POLL_SECONDS)
        return answer

    def logs(self) -> str:
        """The ends of what its pods said."""
        pods = {event.uid: event.seen for event in self.pod_events()}
        return "\n".join(f"--- {pod['metadata']['name']}\n{self.history.log(pod)[-3000:]}" for pod in pods.values())

    def has_said(self, text: str, *, role: str) -> bool:
        """In the log of the leader or, of workers, of the last member."""
        return any(text in self.history.log(pod) for pod in self.pods()[:: -1 if role == "worker" else 1][:1])

    def leftovers(self) -> list[str]:
        """Of pods that are gone: processes that live, cgroups, mounts."""
        present = {pod["metadata"]["uid"] for pod in self.pods()}
        found = []
        for uid in {event.uid for event in self.pod_events()} - present:
            found += [f"{process} lives" for process in self.seen_processes.get(uid, ()) if process.is_alive]
            found += map(str, living_processes.folders(self.installation.cluster, uid))
            found += living_processes.mounts_of(self.installation.cluster, uid)
        return found

    def answer(self) -> int:
        """Status of one request, asked of the leader's own address: the service's may lag behind."""
        leader = self.pods()[0]
        url = f"http://{leader['status']['podIP']}:8000/v1/completions"
        request = urllib.request.Request(
            url, json.dumps({"model": MODEL, "prompt": [65] * 8, "max_tokens": 4}).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return int(error.code)

    def _kubectl(self, *arguments: str, stdin: str | None = None) -> None:
        self.installation.kubectl(*arguments, namespace=self.history.namespace, stdin=stdin, timeout_seconds=PATIENCE_SECONDS)


def _role(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["labels"]["enginehouse.dev/role"], pod["metadata"]["creationTimestamp"]
