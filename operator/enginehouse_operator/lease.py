"""One operator at a time: leadership by a coordination Lease.

Invariants: a lease is judged by changes observed on this process's own monotonic clock, never by another machine's time stamps;
a leader that could not renew within the deadline is told so before anybody else may take over, and its process ends. A request may
take long: a lease is as old as its writing, so a leader counts from before it wrote, and as new as its reading to everybody else.
A write needs the lease's resource version, so that two candidates never both succeed.
Does not run anything itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final

from . import names
from .kubernetes_client import LEASES, ApiError, KubernetesClient

DURATION_SECONDS: Final = 15.0
"""A candidate takes over when the lease did not change for so long."""
RENEW_DEADLINE_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 2.0

log = logging.getLogger("enginehouse.operator")


class LeaseLost(Exception):
    """Leadership could not be kept: the process ends, and whoever holds the lease goes on."""


class Lease:
    """The lease ``enginehouse-operator`` in one namespace. ``identity`` names this process."""

    def __init__(self, client: KubernetesClient, *, namespace: str, identity: str) -> None:
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._seen_version = ""
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self._is_other = False

    async def acquire(self) -> None:
        """Wait until this process is the leader."""
        told = False
        # What took so long to write that it could be lost already is written again.
        while not await self._try() or time.monotonic() - self._renewed_at >= RENEW_DEADLINE_SECONDS:
            if self._is_other and not told:
                log.info("another operator holds the lease %s/%s: standing by", self._namespace, names.LEASE)
                told = True
            await asyncio.sleep(RETRY_SECONDS)
        log.info("leading, by the lease %s/%s", self._namespace, names.LEASE)

    async def keep(self) -> None:
        """Renew for ever. Raises LeaseLost."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                async with asyncio.timeout(self._renewed_at + RENEW_DEADLINE_SECONDS - time.monotonic()):
                    held = await self._try()
            except TimeoutError:
                held = False
            if held:
                continue
            if self._is_other:
                raise LeaseLost("another operator took the lease")
            if time.monotonic() - self._renewed_at >= RENEW_DEADLINE_SECONDS:
                raise LeaseLost(f"the lease could not be renewed for {RENEW_DEADLINE_SECONDS:.0f} s")

    async def release(self) -> None:
        """Let the next one take over at once; a courtesy of an orderly end."""
        try:
            seen = await self._client.get(LEASES, self._namespace, names.LEASE)
            if seen is not None and seen["spec"].get("holderIdentity") == self._identity:
                await self._client.replace(seen | {"spec": seen["spec"] | {"holderIdentity": ""}})
        except ApiError as error:
            log.info("the lease was not released: %s", error)

    async def _try(self) -> bool:
        """Take or renew. False: somebody else holds it, or the API server did not answer."""
        try:
            seen = await self._client.get(LEASES, self._namespace, names.LEASE)
            now = time.monotonic()
            if seen is None:
                await self._client.create(self._manifest({}, transitions=0))
            else:
                holder = seen["spec"].get("holderIdentity") or ""
                version = seen["metadata"]["resourceVersion"]
                if version != self._seen_version:
                    self._seen_version, self._seen_at = version, now
                self._is_other = holder not in ("", self._identity)
                if self._is_other and now - self._seen_at < DURATION_SECONDS:
                    return False
                transitions = (seen["spec"].get("leaseTransitions") or 0) + (holder != self._identity)
                await self._client.replace(self._manifest(seen, transitions=transitions))
        except ApiError as error:
            log.warning("the lease: %s", error)
            return False
        self._renewed_at, self._is_other = now, False
        return True

    def _manifest(self, seen: dict[str, Any], *, transitions: int) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = seen.get("spec") or {}
        mine = before.get("holderIdentity") == self._identity
        return {
            "apiVersion": LEASES.api_version,
            "kind": "Lease",
            "metadata": seen.get("metadata") or {"name": names.LEASE, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(DURATION_SECONDS),
                "acquireTime": before["acquireTime"] if mine and before.get("acquireTime") else now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
