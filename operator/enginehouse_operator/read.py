"""What one pass reads: the engine and everything that was made for it, live from the API server.

Invariant: quorum reads, nothing cached, so that a pass never decides on what a watch has not brought yet. Who lives is read first,
alone, because a death waits for it; the rest then, at once.
Does not interpret (``observe.py``).
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from . import names
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


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Raw objects of one engine, with their kinds filled in (lists leave them out)."""

    engine: Raw
    replicas: tuple[Raw, ...]
    pods: tuple[Raw, ...]
    shared: tuple[Raw, ...] = ()
    """Whatever has the names of the engine's services and disruption budget, of any owner."""
    rights: tuple[Raw, ...] = ()


async def read(client: KubernetesClient, namespace: str, name: str) -> World | None:
    """The engine and who lives of it; None when there is no such engine. Raises ApiError."""
    engine, replicas = await asyncio.gather(
        client.get(ENGINES, namespace, name), _listed(client, REPLICAS, names.REPLICA_KIND, namespace, name)
    )
    if engine is None:
        return None
    # Replicas before pods: a row that is seen then belongs to a pod that existed, so its absence from the later list is a loss.
    pods = await _listed(client, PODS, "Pod", namespace, name)
    return World(engine=engine, replicas=tuple(replicas), pods=tuple(pods))


async def read_rest(client: KubernetesClient, world: World) -> World:
    """With what they use. Raises ApiError."""
    namespace, name = world.engine["metadata"]["namespace"], world.engine["metadata"]["name"]
    rights, shared = await asyncio.gather(
        asyncio.gather(
            _listed(client, SERVICE_ACCOUNTS, "ServiceAccount", namespace, name),
            _listed(client, ROLES, "Role", namespace, name),
            _listed(client, ROLE_BINDINGS, "RoleBinding", namespace, name),
        ),
        asyncio.gather(
            client.get(SERVICES, namespace, names.service_name(name)),
            client.get(SERVICES, namespace, names.members_service_name(name)),
            client.get(DISRUPTION_BUDGETS, namespace, names.disruption_budget_name(name)),
        ),
    )
    return msgspec.structs.replace(
        world, rights=tuple(raw for part in rights for raw in part), shared=tuple(raw for raw in shared if raw is not None)
    )


async def _listed(client: KubernetesClient, kind: Kind, word: str, namespace: str, engine: str) -> list[Raw]:
    found = await client.list(kind, namespace, selector=f"{names.LABEL_ENGINE}={engine}")
    return [raw | {"apiVersion": kind.api_version, "kind": word} for raw in found]
