"""kopf, and nothing else: watches wake the queue.

Invariant: a handler puts a key on the queue and returns nothing. No finalizers, no annotations, no Events by kopf: an object can
always be deleted, operator or not.
Does not read or write objects, and knows no reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from . import names
from .queue import Key


def registry(wake: Callable[[Key], None]) -> kopf.OperatorRegistry:
    """Watches of engines, replicas and members that call ``wake`` with the engine's key."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # The same order as kubernetes_client.configure.
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(names.GROUP, names.VERSION, "inferenceengines", registry=found)
    async def engine_changed(*, namespace: str | None, name: str, **_: Any) -> None:
        wake((namespace or "", name))

    @kopf.on.event(names.GROUP, names.VERSION, "enginereplicas", labels={names.LABEL_ENGINE: kopf.PRESENT}, registry=found)
    async def replica_changed(*, namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        wake((namespace or "", labels[names.LABEL_ENGINE]))

    @kopf.on.event("", "v1", "pods", labels={names.LABEL_REPLICA: kopf.PRESENT, names.LABEL_ENGINE: kopf.PRESENT}, registry=found)
    async def member_changed(*, namespace: str | None, labels: Mapping[str, str], **_: Any) -> None:
        wake((namespace or "", labels[names.LABEL_ENGINE]))

    return found


def settings() -> kopf.OperatorSettings:
    """Bounded watches, no finalizers, no Events, no reads of anything cluster-wide but what is watched."""
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    found.peering.standalone = True
    found.scanning.disabled = True
    found.watching.server_timeout = 300
    found.watching.client_timeout = 330
    found.watching.connect_timeout = 10
    found.networking.request_timeout = 30
    found.networking.enforce_retry_after = True
    found.process.ultimate_exiting_timeout = 25
    found.watching.label_selectors["", "v1", "pods"] = names.LABEL_REPLICA
    return found
