"""What one pass reads: the engine and everything that was made for it, live from the API server.

Invariant: quorum reads, nothing cached, so that a pass never decides on what a watch has not brought yet.
Does not interpret (``observe.py``).
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from . import names
from .kubernetes_client import (
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
    services: tuple[Raw, ...]
    """Whatever has the names of the engine's services, of any owner."""
    rights: tuple[Raw, ...]


async def read(client: KubernetesClient, namespace: str, name: str) -> World | None:
    """None when there is no such engine. Raises ApiError."""
    engine = await client.get(ENGINES, namespace, name)
    if engine is None:
        return None
    selector = f"{names.LABEL_ENGINE}={name}"

    async def listed(kind: Kind, word: str) -> list[Raw]:
        return [
            raw | {"apiVersion": kind.api_version, "kind": word} for raw in await client.list(kind, namespace, selector=selector)
        ]

    # Replicas before pods: a row that is seen then belongs to a pod that existed, so its absence from the later list is a loss.
    replicas = await listed(REPLICAS, names.REPLICA_KIND)
    pods, accounts, roles, bindings = await asyncio.gather(
        listed(PODS, "Pod"),
        listed(SERVICE_ACCOUNTS, "ServiceAccount"),
        listed(ROLES, "Role"),
        listed(ROLE_BINDINGS, "RoleBinding"),
    )
    services = await asyncio.gather(
        client.get(SERVICES, namespace, names.service_name(name)),
        client.get(SERVICES, namespace, names.members_service_name(name)),
    )
    return World(
        engine=engine,
        replicas=tuple(replicas),
        pods=tuple(pods),
        services=tuple(service for service in services if service is not None),
        rights=(*accounts, *roles, *bindings),
    )
