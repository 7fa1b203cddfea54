"""The engine and everything that was made for it, live from the API server.

Invariant: quorum reads. A new engine that has neither replicas nor conditions has no pods and no rights either; of any other
rights are asked for also while there is no replica: those of one that somebody deleted may be on their way out.
Does not keep (``cache.py``) and does not interpret (``observe.py``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from . import names
from .cache import World
from .kubernetes_client import (
    DISRUPTION_BUDGETS,
    ENGINES,
    PODS,
    REPLICAS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    Kind,
    KubernetesClient,
)

Raw = dict[str, Any]


async def read(client: KubernetesClient, namespace: str, name: str, *, is_new: bool = False) -> World | None:
    """None when there is no such engine. ``is_new``: nothing was seen or made of it yet. Raises ApiError."""
    engine, replicas, *shared = await asyncio.gather(
        client.get(ENGINES, namespace, name),
        _listed(client, REPLICAS, namespace, name),
        client.get(SERVICES, namespace, names.service_name(name)),
        client.get(SERVICES, namespace, names.members_service_name(name)),
        client.get(DISRUPTION_BUDGETS, namespace, names.disruption_budget_name(name)),
    )
    if engine is None:
        return None
    found = [raw for raw in shared if raw is not None]
    if is_new and not replicas and not (engine.get("status") or {}).get("conditions"):
        return World(engine=engine, others=tuple(found))
    # Replicas before pods: a row that is seen then belongs to a pod that existed, so its absence from the later list is a loss.
    pods, *rights = await asyncio.gather(
        _listed(client, PODS, namespace, name),
        _listed(client, SERVICE_ACCOUNTS, namespace, name),
        _listed(client, ROLES, namespace, name),
        _listed(client, ROLE_BINDINGS, namespace, name),
    )
    found += [raw for part in rights for raw in part]
    return World(engine=engine, replicas=tuple(replicas), pods=tuple(pods), others=tuple(found))


async def _listed(client: KubernetesClient, kind: Kind, namespace: str, engine: str) -> list[Raw]:
    found = await client.list(kind, namespace, selector=f"{names.LABEL_ENGINE}={engine}")
    return [raw | {"apiVersion": kind.api_version, "kind": kind.word} for raw in found]
