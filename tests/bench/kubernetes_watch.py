"""Watches of the Kubernetes API for benchmarks: what was seen, and when it had come.

The one job: follow one collection over a connection of its own and note the time of every event before it is looked at.
Invariant: nothing is lost: a watch that ends or breaks says so to whoever waits. Does not list page by page, does not write.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

_WATCH_SECONDS = 7200


class NotSeen(Exception):
    """It did not happen in time, or the watch is over."""


@dataclass(frozen=True)
class Event:
    """One event of a watch."""

    at: float
    """Seconds since the epoch when its line had come."""
    kind: str
    found: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.found["metadata"]["name"])


class Watch(threading.Thread):
    """Of everything below ``path`` in the API."""

    def __init__(self, kubeconfig: Path, path: str) -> None:
        super().__init__(daemon=True, name=path)
        self._path = path
        host, port, context = opened(kubeconfig)
        self._connection = http.client.HTTPSConnection(host, port, context=context)
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._latest: dict[str, dict[str, Any]] = {}
        self._over = ""

    def latest(self) -> dict[str, dict[str, Any]]:
        """What there is, by name."""
        with self._changed:
            return dict(self._latest)

    def first(self, what: str, matches: Callable[[Event], bool], *, since: float, seconds: float) -> Event:
        """The first event from ``since`` on that matches; waits until so many seconds after ``since``. Raises NotSeen."""
        looked_at = 0
        with self._changed:
            while True:
                for event in self._events[looked_at:]:
                    if event.at >= since and matches(event):
                        return event
                looked_at = len(self._events)
                self._wait(what, deadline=since + seconds)

    def until(self, what: str, holds: Callable[[dict[str, dict[str, Any]]], bool], *, seconds: float) -> None:
        """Wait until it holds of what there is. Raises NotSeen."""
        deadline = time.time() + seconds
        with self._changed:
            while not holds(self._latest):
                self._wait(what, deadline=deadline)

    def seen(self, matches: Callable[[Event], bool], *, since: float) -> Event | None:
        """As :meth:`first`, of what has come until now."""
        with self._changed:
            return next((event for event in self._events if event.at >= since and matches(event)), None)

    def forget(self) -> None:
        """The events until now are of no interest any more."""
        with self._changed:
            self._events.clear()

    def run(self) -> None:
        try:
            self._connection.request("GET", f"{self._path}?watch=1&timeoutSeconds={_WATCH_SECONDS}")
            response = self._connection.getresponse()
            if response.status != 200:
                raise OSError(f"HTTP {response.status}: {response.read()[:500]!r}")
            while line := response.readline():
                self._take(time.time(), json.loads(line))
            self._end("the API server has ended it")
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # AttributeError is http.client's way to say that the connection was closed meanwhile.
            self._end(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        if self._connection.sock is not None:
            self._connection.sock.close()

    def _take(self, at: float, line: dict[str, Any]) -> None:
        with self._changed:
            event = Event(at, line["type"], line["object"])
            self._events.append(event)
            if event.kind == "DELETED":
                self._latest.pop(event.name, None)
            else:
                self._latest[event.name] = event.found
            self._changed.notify_all()

    def _end(self, why: str) -> None:
        with self._changed:
            self._over = why
            self._changed.notify_all()

    def _wait(self, what: str, *, deadline: float) -> None:
        if self._over:
            raise NotSeen(f"{what}: the watch of {self._path} is over: {self._over}")
        if not self._changed.wait(deadline - time.time()) and time.time() >= deadline:
            raise NotSeen(f"{what}: not seen in time by the watch of {self._path}")


@dataclass(frozen=True)
class Watches:
    """Of one namespace."""

    engines: Watch
    replicas: Watch
    pods: Watch
    slices: Watch

    def forget(self) -> None:
        for watch in (self.engines, self.replicas, self.pods, self.slices):
            watch.forget()


@contextmanager
def watching(kubeconfig: Path, namespace: str) -> Iterator[Watches]:
    ours = f"/apis/enginehouse.dev/v1alpha1/namespaces/{namespace}"
    watches = Watches(
        engines=Watch(kubeconfig, f"{ours}/inferenceengines"),
        replicas=Watch(kubeconfig, f"{ours}/enginereplicas"),
        pods=Watch(kubeconfig, f"/api/v1/namespaces/{namespace}/pods"),
        slices=Watch(kubeconfig, f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
    )
    every = (watches.engines, watches.replicas, watches.pods, watches.slices)
    for watch in every:
        watch.start()
    try:
        yield watches
    finally:
        for watch in every:
            watch.close()


def condition(found: dict[str, Any], kind: str) -> str:
    """The status of a condition, or nothing."""
    conditions = found.get("status", {}).get("conditions", [])
    return next((str(entry["status"]) for entry in conditions if entry["type"] == kind), "")


def opened(kubeconfig: Path) -> tuple[str, int, ssl.SSLContext]:
    """Where the API server of a kubeconfig with a client's certificate is, and what opens it."""
    found = yaml.safe_load(kubeconfig.read_text())
    cluster, user = found["clusters"][0]["cluster"], found["users"][0]["user"]
    address = urlparse(cluster["server"])

    def text(holder: dict[str, str], key: str) -> str:
        data = holder.get(f"{key}-data")
        return base64.b64decode(data).decode() if data else Path(holder[key]).read_text()

    context = ssl.create_default_context(cadata=text(cluster, "certificate-authority"))
    with tempfile.NamedTemporaryFile("w") as pair:  # the library reads certificate and key from files alone
        pair.write(text(user, "client-certificate") + text(user, "client-key"))
        pair.flush()
        context.load_cert_chain(pair.name)
    return str(address.hostname), address.port or 443, context
