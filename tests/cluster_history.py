"""What the API server showed of one namespace, event by event: engines, replicas and pods, for tests that follow a story.

Invariant: a state that was there and is gone again is still in the history, and the log of a pod that is gone can still be read; a
watch that breaks is made again. Does not judge.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

import urllib3
from kubernetes import config as kubernetes_config

from localkube.cluster import Cluster
from localkube.paths import cluster_paths

KINDS = {
    "ie": "/apis/enginehouse.dev/v1alpha1/namespaces/{}/inferenceengines",
    "ier": "/apis/enginehouse.dev/v1alpha1/namespaces/{}/enginereplicas",
    "pod": "/api/v1/namespaces/{}/pods",
}
ENGINE_LABEL = "enginehouse.dev/engine"

_WATCH_SECONDS = 600
_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.2

Object = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """An object as it was from this moment on. ``deleted``: it is gone."""

    at: float
    kind: str
    name: str
    engine: str
    seen: Object
    deleted: bool = False

    @property
    def uid(self) -> str:
        return str(self.seen["metadata"]["uid"])


@dataclass
class History:
    """Watches from :meth:`watching` on, in threads."""

    cluster: Cluster
    namespace: str
    events: list[Event] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _logs: dict[str, TextIO] = field(default_factory=dict)
    """By pod UID. An open file can be read when the kubelet has deleted it."""
    _over: bool = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[History]:
        with kubernetes_config.new_client_from_config(str(self.cluster.kubeconfig)) as client:
            pool, host = client.rest_client.pool_manager, client.configuration.host
            for kind, path in KINDS.items():
                url = host + path.format(self.namespace)
                threading.Thread(target=self._watch, args=(pool, kind, url), name=f"watch {kind}", daemon=True).start()
            try:
                yield self
            finally:
                self._over = True
                pool.clear()

    # What there is, and was

    def now(self, kind: str, engine: str) -> list[Object]:
        """Those that are there."""
        last: dict[str, Event] = {event.uid: event for event in self.of(kind, engine)}
        return [event.seen for event in last.values() if not event.deleted]

    def of(self, kind: str, engine: str) -> list[Event]:
        with self._changed:
            return [event for event in self.events if event.kind == kind and event.engine == engine]

    def until(self, what: str, check: Callable[[], Any], *, seconds: float, engine: str) -> Any:
        """The first true answer; asked again at every event. Raises AssertionError with the engine's story."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not (answer := check()):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not within {seconds:g} s: {what}\n{self.story(engine)}")
                self._changed.wait(left)
        return answer

    def log(self, pod: Object) -> str:
        """What the engine container of a pod has said so far."""
        with self._changed:
            self._open_log(pod["metadata"])
            log = self._logs.get(pod["metadata"]["uid"])
            if log is None:
                return ""
            log.seek(0)
            return log.read()

    def story(self, engine: str) -> str:
        """One line for each change, seconds from the first."""
        lines: list[str] = []
        told: dict[str, str] = {}
        first = None
        for event in sorted([event for kind in KINDS for event in self.of(kind, engine)], key=lambda event: event.at):
            first = event.at if first is None else first
            words = "gone" if event.deleted else _WORDS[event.kind](event.seen)
            if told.get(event.uid) != words:
                told[event.uid] = words
                lines.append(f"{event.at - first:7.2f} s  {event.kind} {event.name}: {words}")
        return "\n".join(lines)

    def _open_log(self, pod: Object) -> None:
        if pod["uid"] not in self._logs:
            folder = cluster_paths(self.cluster.name).root / "pod-logs" / f"{pod['namespace']}_{pod['name']}_{pod['uid']}"
            with contextlib.suppress(FileNotFoundError):
                self._logs[pod["uid"]] = (folder / "engine" / "0.log").open(errors="replace")

    # Watching

    def _watch(self, pool: urllib3.PoolManager, kind: str, url: str) -> None:
        present: dict[str, Object] = {}
        while not self._over:
            try:
                version = self._list(pool, kind, url, present)
                fields = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(_WATCH_SECONDS)}
                timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=_WATCH_SECONDS + 30)
                answer = pool.request("GET", url, fields=fields, preload_content=False, timeout=timeout, retries=False)
                for line in answer:
                    if not self._heard(kind, json.loads(line), present):
                        break
            except (urllib3.exceptions.HTTPError, OSError, ValueError, KeyError):
                # The API server is away, or the cluster: the next list tells what was missed.
                time.sleep(_RETRY_SECONDS)

    def _list(self, pool: urllib3.PoolManager, kind: str, url: str, present: dict[str, Object]) -> str:
        found = json.loads(pool.request("GET", url, timeout=_CONNECT_SECONDS, retries=False).data)
        listed = {item["metadata"]["uid"]: item for item in found["items"]}
        for uid in present.keys() - listed.keys():
            self._add(kind, present.pop(uid), deleted=True)
        for item in listed.values():
            if present.get(item["metadata"]["uid"]) != item:
                self._add(kind, item)
        present.update(listed)
        return str(found["metadata"]["resourceVersion"])

    def _heard(self, kind: str, event: Object, present: dict[str, Object]) -> bool:
        if event["type"] == "ERROR":
            return False
        seen = event["object"]
        uid, deleted = seen["metadata"]["uid"], event["type"] == "DELETED"
        if deleted:
            present.pop(uid, None)
        else:
            present[uid] = seen
        self._add(kind, seen, deleted=deleted)
        return True

    def _add(self, kind: str, seen: Object, *, deleted: bool = False) -> None:
        metadata = seen["metadata"]
        engine = metadata["name"] if kind == "ie" else metadata.get("labels", {}).get(ENGINE_LABEL, "")
        with self._changed:
            if kind == "pod":
                self._open_log(metadata)
            self.events.append(Event(time.monotonic(), kind, metadata["name"], engine, seen, deleted))
            self._changed.notify_all()


def conditions(engine: Object) -> dict[str, Object]:
    """By type."""
    return {entry["type"]: entry for entry in engine.get("status", {}).get("conditions", ())}


def is_true(engine: Object, condition: str) -> bool:
    return bool(conditions(engine).get(condition, {}).get("status") == "True")


def rows(replica: Object) -> list[Object]:
    found: list[Object] = replica.get("status", {}).get("members", [])
    return found


def failure_words(failure: Object) -> str:
    who = " ".join(str(failure[key]) for key in ("role", "rank") if key in failure)
    how = f"signal {failure['signal']}" if "signal" in failure else f"exit code {failure.get('exitCode')}"
    return f"{who} incarnation {failure.get('incarnation')}: {failure.get('class')}, {how}: {failure.get('message', '')[:160]}"


def _engine_words(engine: Object) -> str:
    status = engine.get("status", {})
    true = [f"{name} ({entry['reason']})" for name, entry in conditions(engine).items() if entry["status"] == "True"]
    last = f"; last failure {failure_words(status['lastFailure'])}" if "lastFailure" in status else ""
    return f"{', '.join(true)}; restarts {status.get('restarts', 0)}{last}"


def _replica_words(replica: Object) -> str:
    end = replica["spec"].get("end")
    told = [f"ends ({end['reason']})"] if end else []
    for row in rows(replica):
        parts = [f"rank {rank['rank']}.{rank.get('incarnation')} {rank.get('state')}" for rank in row.get("ranks", ())]
        parts += [f"API server {one['index']}.{one.get('incarnation')} {one.get('state')}" for one in row.get("apiServers", ())]
        failures = [failure_words(failure) for failure in row.get("failures", ())]
        told.append(f"[{row['name'][-8:]} {row.get('state')}: {', '.join(parts)}{''.join(f' | {text}' for text in failures)}]")
    return " ".join(told) or "made"


def _pod_words(pod: Object) -> str:
    status = pod.get("status", {})
    told = [status.get("phase", "Pending")]
    for container in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        state = next(iter(container.get("state", {})), "waiting")
        ended = container.get("state", {}).get("terminated", {})
        code = f" {ended.get('exitCode')} {ended.get('reason')}" if ended else ""
        again = f" restarts {container['restartCount']}" if container.get("restartCount") else ""
        told.append(f"{container['name']} {state}{code}{again}")
    if any(entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions", ())):
        told.append("ready")
    if "deletionTimestamp" in pod["metadata"]:
        told.append("leaving")
    return ", ".join(told)


_WORDS: dict[str, Callable[[Object], str]] = {"ie": _engine_words, "ier": _replica_words, "pod": _pod_words}
