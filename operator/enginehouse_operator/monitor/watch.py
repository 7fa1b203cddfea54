"""Watches this pod's own replica, in a thread of its own that sleeps in the kernel until the API server says something.

Invariants: what was seen last is the truth until something else is seen, so an API server that cannot be reached, or refuses,
changes nothing; only an answer without the object, or a DELETED, means that it is gone; after whatever error the object is either
read again or watched on from where it was. Has no timer: keepalive tells of a lost connection (``connection.py``), and the server
ends each watch after a while. Does not judge what it sees: ``peers.py`` does.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from enginehouse_operator.monitor.api import replicas_path
from enginehouse_operator.monitor.connection import Access, Connection, Unavailable

logger = logging.getLogger("enginehouse.monitor")

FIRST_RETRY_SECONDS: Final = 0.1
LONGEST_RETRY_SECONDS: Final = 10.0
WATCH_SECONDS: Final = 300
"""The server ends a watch after that, up to twice as long: monitors that began together do not come back together."""
_LATE_SECONDS: Final = 30


@dataclass(frozen=True)
class Seen:
    """``replica`` is the object; None = there is none of this name."""

    replica: dict[str, Any] | None


class Expired(Exception):
    """The server no longer knows what came after the version that was asked for."""


class ReplicaWatch:
    """``event`` is an eventfd that becomes readable with each :attr:`newest`."""

    def __init__(self, access: Access, *, namespace: str, replica: str) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.newest: Seen | None = None
        """None = not read yet."""
        self._connection = Connection(access)
        self._path = replicas_path(namespace)
        self._selector = {"fieldSelector": f"metadata.name={replica}"}
        self._version = ""
        """Everything up to here was seen; empty = nothing."""
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._thread = threading.Thread(target=self._run, name="replica-watch", daemon=True)

    def start(self) -> None:
        """Read the replica and watch it from then on, for ever."""
        self._thread.start()

    def take(self) -> Seen | None:
        """What is so now, after ``event``."""
        os.eventfd_read(self.event)
        return self.newest

    def _run(self) -> None:
        while True:
            try:
                if not self._version:
                    self._read()
                self._follow()
            except Expired as error:
                self._version = ""
                self._pause(error)
            except Unavailable as error:
                self._pause(error)

    def _read(self) -> None:
        status, text = self._connection.ask("GET", f"{self._path}?{urlencode(self._selector)}")
        if status != 200:
            raise Unavailable(f"GET {self._path}: {status} {text[:500].decode(errors='replace')}")
        try:
            found = json.loads(text)
            version, items = str(found["metadata"]["resourceVersion"]), list(found["items"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unavailable(f"GET {self._path}: the answer is no list: {text[:200]!r}") from error
        self._tell(_checked(items[0]) if items else None)
        self._version = version

    def _follow(self) -> None:
        seconds = int(WATCH_SECONDS * random.uniform(1, 2))
        more = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": self._version, "timeoutSeconds": str(seconds)}
        path = f"{self._path}?{urlencode(self._selector | more)}"
        has_said_something = False
        with self._connection.answer("GET", path, silence_seconds=seconds + _LATE_SECONDS) as response:
            if response.status == 410:
                raise Expired(f"GET {path}: 410")
            if response.status != 200:
                raise Unavailable(f"GET {path}: {response.status} {response.read(500).decode(errors='replace')}")
            for line in response:
                self._take(line)
                has_said_something = True
                self._retry_seconds = FIRST_RETRY_SECONDS
        if not has_said_something:
            # Not at once again: a server that ends every watch as soon as it began would be asked without a pause.
            raise Unavailable(f"GET {path}: the watch ended without a word")

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, thing = event["type"], event["object"]
            if kind == "ERROR":
                raise (Expired if thing.get("code") == 410 else Unavailable)(f"the watch failed: {line[:500]!r}")
            version = str(thing["metadata"]["resourceVersion"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Unavailable(f"the watch said what is no event: {line[:200]!r}") from error
        if kind in ("ADDED", "MODIFIED"):
            self._tell(_checked(thing))
        elif kind == "DELETED":
            self._tell(None)
        self._version = version

    def _tell(self, replica: dict[str, Any] | None) -> None:
        self.newest = Seen(replica)
        os.eventfd_write(self.event, 1)

    def _pause(self, error: Exception) -> None:
        """Before the next attempt, with the jitter that keeps many monitors apart."""
        logger.warning("watching again: %s", error)
        time.sleep(self._retry_seconds * random.uniform(0.5, 1.0))
        self._retry_seconds = min(LONGEST_RETRY_SECONDS, 2 * self._retry_seconds)


def _checked(replica: Any) -> dict[str, Any]:
    """What ``peers.py`` relies on; the schema keeps to the rest. Raises Unavailable."""
    if isinstance(replica, dict) and isinstance(replica.get("metadata"), dict) and isinstance(replica["metadata"].get("uid"), str):
        return replica
    raise Unavailable(f"the API said what is no object: {str(replica)[:200]}")
