"""Kubernetes Events about an engine: what the operator did and what went wrong, once each.

Invariant: an Event's name is a hash of what it says about which object, so that saying it again, also after a restart, is
refused by the API server; nothing depends on an Event having arrived.
Does not decide what is worth an Event (``reconcile.py``).
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, Final

from . import names
from .conditions import timestamp
from .kubernetes_client import ApiError, KubernetesClient

NORMAL: Final = "Normal"
WARNING: Final = "Warning"
MESSAGE_CHARACTERS: Final = 1024
REMEMBERED: Final = 4096


class Events:
    """Posts Events; remembers the last ones said, to spare requests. The memory may be lost."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._said: OrderedDict[str, None] = OrderedDict()

    async def say(self, about: dict[str, Any], *, kind: str, reason: str, message: str) -> None:
        """``about`` is the raw object; ``kind`` NORMAL or WARNING. A post that fails is let go."""
        metadata, message = about["metadata"], message[:MESSAGE_CHARACTERS]
        name = f"{metadata['name']}.{names.short_hash(metadata['uid'], reason, message)}"
        if name in self._said:
            return
        self._said[name] = None
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        now = timestamp(datetime.now(UTC))
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
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": "",
        }
        try:
            await self._client.create(event)
        except ApiError:
            return
