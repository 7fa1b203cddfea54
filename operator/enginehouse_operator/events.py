"""Kubernetes Events about an engine: what the operator did and what went wrong, once each.

Invariant: an Event's name is a hash of what it says about which object, and of the moment if it tells of one, so that saying it
again, also after a restart, is refused by the API server; nothing depends on an Event having arrived.
Does not decide what is worth an Event (``reconcile.py``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from . import names
from .conditions import timestamp
from .kubernetes_client import ApiError, KubernetesClient

NORMAL: Final = "Normal"
WARNING: Final = "Warning"
MESSAGE_CHARACTERS: Final = 1024
REMEMBERED: Final = 4096
KEPT: Final = timedelta(hours=1)
"""For how long an API server keeps an Event, by default. What is so again after that is said again."""


class Events:
    """Posts Events; remembers the last ones said, to spare requests. The memory may be lost."""

    def __init__(self, client: KubernetesClient, clock: Callable[[], datetime]) -> None:
        self._client = client
        self._clock = clock
        self._said: OrderedDict[str, datetime] = OrderedDict()

    async def say(self, about: dict[str, Any], *, kind: str, reason: str, message: str, moment: datetime | None = None) -> None:
        """``about`` is the raw object; ``kind`` NORMAL or WARNING. The same words about another ``moment`` are another Event.

        A post that fails is let go.
        """
        metadata, message, now = about["metadata"], message[:MESSAGE_CHARACTERS], self._clock()
        said = (reason, message) if moment is None else (reason, message, timestamp(moment))
        name = f"{metadata['name']}.{names.short_hash(metadata['uid'], *said)}"
        if name in self._said and now - self._said[name] < KEPT:
            return
        self._said[name] = now
        self._said.move_to_end(name)
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "firstTimestamp": timestamp(now),
            "lastTimestamp": timestamp(now),
            "count": 1,
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": "",
        }
        try:
            await self._client.create(event)
        except ApiError:
            return
