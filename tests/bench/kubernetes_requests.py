"""Requests to the Kubernetes API for benchmarks that send thousands of them.

The one job: JSON over one lasting connection per thread, as administrator or in somebody's name. Invariant: an answer that is no
success is an error with its words. Not done here: watches (kubernetes_watch.py), any limit on how many are sent.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from kubernetes_watch import opened

_SECONDS = 120.0


class Refused(Exception):
    """The API server said no."""


class Requests:
    """Safe to use from many threads."""

    def __init__(self, kubeconfig: Path) -> None:
        self._host, self._port, self._context = opened(kubeconfig)
        self._own = threading.local()

    def send(self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of the answer. Raises Refused, and OSError when the connection breaks."""
        found = getattr(self._own, "connection", None)
        if found is None:
            found = http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=_SECONDS)
            self._own.connection = found
        data = None if body is None else msgspec.json.encode(body)
        found.request(method, path, data, {"Content-Type": "application/json", "User-Agent": "bench", **(headers or {})})
        answer = found.getresponse()
        content: bytes = answer.read()
        if answer.status >= 300:
            raise Refused(f"{method} {path}: {answer.status} {content[:300]!r}")
        return content
