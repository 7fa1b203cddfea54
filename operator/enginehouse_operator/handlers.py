"""kopf, and nothing else: what its watches bring is heard.

Invariant: a handler passes an event on and returns nothing. No finalizers, no annotations, no Events by kopf: an object can
always be deleted, operator or not.
Does not read or write objects, and knows no reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import kopf

from . import names


def registry(hear: Callable[[str | None, dict[str, Any]], None]) -> kopf.OperatorRegistry:
    """Watches of engines, replicas and members that call ``hear`` with the event's type (None: from a listing) and the object."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # The same order as kubernetes_client.configure.
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(names.GROUP, names.VERSION, "inferenceengines", registry=found)
    @kopf.on.event(names.GROUP, names.VERSION, "enginereplicas", registry=found)
    @kopf.on.event("", "v1", "pods", registry=found)
    async def changed(*, event: kopf.RawEvent, **_: Any) -> None:
        hear(event["type"], cast(dict[str, Any], event["object"]))

    return found


class _NoMemory(kopf.MultiDiffBaseStorage):
    """Of no storages. kopf keeps a copy of each object to find out what changed; nobody here asks it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return cast(kopf.BodyEssence, {})


def settings() -> kopf.OperatorSettings:
    """Bounded watches, no finalizers, no Events, no reads of anything cluster-wide but what is watched."""
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    found.peering.standalone = True
    found.persistence.diffbase_storage = _NoMemory([])
    found.persistence.progress_storage = kopf.MultiProgressStorage([])
    found.scanning.disabled = True
    found.watching.server_timeout = 300
    found.watching.client_timeout = 330
    found.watching.connect_timeout = 10
    found.networking.request_timeout = 30
    found.networking.enforce_retry_after = True
    found.process.ultimate_exiting_timeout = 25
    found.watching.label_selectors["", "v1", "pods"] = names.LABEL_REPLICA
    return found
