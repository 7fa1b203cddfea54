"""When each object of a collection was first this or that, for thousands of objects.

The one job: one watch that decodes the few fields it looks at and keeps a time per object and question.
Invariant: an event that was missed is an error: a watch that ends goes on at the version that it has seen, or says so.
Not done here: objects that are deleted and made again (names are used once).
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from kubernetes_watch import opened

_WATCH_SECONDS = 3600
_RECONNECT_SECONDS = 0.2


class Condition(msgspec.Struct, frozen=True):
    type: str
    status: str = ""


class Owner(msgspec.Struct, frozen=True):
    kind: str
    name: str
    uid: str


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""  # a bookmark has none
    uid: str = ""
    resource_version: str = ""
    owner_references: list[Owner] = []


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """Of a pod, an engine or one of a peer's groups."""

    conditions: list[Condition] = []
    ready_replicas: int = 0
    state: str = ""
    ready_worker_replicas: int = 0

    def is_true(self, kind: str) -> bool:
        return any(found.type == kind and found.status == "True" for found in self.conditions)


class Found(msgspec.Struct, frozen=True):
    metadata: Metadata
    status: Status = Status()


class _Line(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


Question = Callable[[Found], bool]


def is_ready(found: Found) -> bool:
    """As pods and engines say it."""
    return found.status.is_true("Ready")


class FirstTimes(threading.Thread):
    """Of everything below ``path`` in the API that comes from now on. ``listener`` hears of every event."""

    def __init__(
        self, kubeconfig: Path, path: str, questions: Mapping[str, Question], *, listener: Callable[[Found], None] | None = None
    ) -> None:
        super().__init__(daemon=True, name=path)
        self._host, self._port, self._context = opened(kubeconfig)
        self._path, self._questions, self._listener = path, questions, listener
        self._times: dict[str, dict[str, float]] = {question: {} for question in questions}
        self._over = threading.Event()
        self._error = ""
        self._version = self._now()

    def times(self, question: str) -> dict[str, float]:
        """By name; seconds of the monotonic clock. Raises RuntimeError when the watch has failed."""
        if self._error:
            raise RuntimeError(f"the watch of {self._path} failed: {self._error}")
        return dict(self._times[question])

    def __enter__(self) -> FirstTimes:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self._follow()
            except (OSError, http.client.HTTPException) as error:
                if not self._over.is_set():
                    print(f"the watch of {self._path} goes on after {type(error).__name__}", flush=True)
                    self._over.wait(_RECONNECT_SECONDS)
            except (ValueError, RuntimeError) as error:
                self._error = f"{type(error).__name__}: {error}"
                return

    def _connected(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=_WATCH_SECONDS)

    def _now(self) -> str:
        connection = self._connected()
        connection.request("GET", f"{self._path}?limit=1")
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"GET {self._path}: {answer.status} {content[:300]!r}")
        return str(msgspec.json.decode(content)["metadata"]["resourceVersion"])

    def _follow(self) -> None:
        connection = self._connected()
        query = f"watch=1&allowWatchBookmarks=true&timeoutSeconds={_WATCH_SECONDS}&resourceVersion={self._version}"
        connection.request("GET", f"{self._path}?{query}")
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"HTTP {answer.status}: {answer.read()[:300]!r}")
        lines, objects = msgspec.json.Decoder(_Line), msgspec.json.Decoder(Found)
        while (line := answer.readline()) and not self._over.is_set():
            at, event = time.monotonic(), lines.decode(line)
            if event.type == "ERROR":
                raise RuntimeError(bytes(event.object).decode())
            found = objects.decode(event.object)
            self._version = found.metadata.resource_version
            if event.type in ("ADDED", "MODIFIED"):
                self._look(at, found)

    def _look(self, at: float, found: Found) -> None:
        for question, is_true in self._questions.items():
            if found.metadata.name not in self._times[question] and is_true(found):
                self._times[question][found.metadata.name] = at
        if self._listener is not None:
            self._listener(found)
