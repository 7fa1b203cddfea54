"""The operator as a running whole: lease, watches, queue, health; and the named loop top where a pass may fail.

Invariant: nothing is watched or written before this process leads; when one part ends, for whatever reason, all end.
Does not parse flags (``flags.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import kopf

from . import __version__, handlers, log_format, metrics, names
from .act import Actor
from .cache import Cache
from .events import Events
from .flags import Flags
from .health import serve_health, serve_metrics
from .kubernetes_client import ENGINES, REPLICAS, ApiError, Kind, KubernetesClient, NotFound
from .lease import Lease
from .queue import Again, Key, KeyedQueue
from .reconcile import Reconciler

CRD_RETRY_SECONDS = 5.0

log = logging.getLogger("enginehouse.operator")


async def run(flags: Flags, client: KubernetesClient) -> None:
    """Lead and work until SIGTERM or SIGINT. Raises LeaseLost."""
    events, cache = Events(client, _now), Cache()
    actor = Actor(client, cache, events, flags.pod_settings)
    reconciler = Reconciler(client, cache, actor, events, _now)
    queue = KeyedQueue(guarded(reconciler, cache), workers=flags.workers)

    def hear(event: str | None, raw: dict[str, Any]) -> None:
        is_first_visit = event is None or (event == "ADDED" and raw["kind"] == names.ENGINE_KIND)
        for key in cache.heard(event, raw):
            queue.add(key, can_wait=is_first_visit)

    async with contextlib.AsyncExitStack() as servers:
        if flags.health_port:
            servers.push_async_callback((await serve_health(flags.health_port, lambda: queue.longest_running_seconds)).cleanup)
        if flags.metrics_port:
            servers.push_async_callback((await serve_metrics(flags.metrics_port, lambda: queue.depth)).cleanup)
        for kind in (ENGINES, REPLICAS):
            await wait_for_kind(client, kind, flags.namespace or flags.lease_namespace)
        lease = Lease(client, namespace=flags.lease_namespace, identity=flags.identity)
        await lease.acquire()
        metrics.IS_LEADER.set(1)
        log.info("operator %s works on %s", __version__, flags.namespace or "all namespaces")
        watches = kopf.operator(
            registry=handlers.registry(hear),
            settings=handlers.settings(),
            standalone=True,
            identity=cast(Any, flags.identity),  # else kopf asks the passwd file, where a container's user is not
            clusterwide=flags.namespace is None,
            namespaces=[flags.namespace] if flags.namespace else [],
        )
        await first_of(watches, queue.run(), lease.keep())
        await lease.release()


async def first_of(*parts: Awaitable[None]) -> None:
    """Run all; when one ends, end the others. Raises what it raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


async def wait_for_kind(client: KubernetesClient, kind: Kind, namespace: str) -> None:
    """Until the API server knows it. Says what to do while it does not."""
    while True:
        try:
            await client.list(kind, namespace, limit=1)
        except NotFound:
            log.warning("the API server does not know %s of %s: kubectl apply -f crds/", kind.plural, kind.api_version)
        except ApiError as error:
            log.warning("the API server: %s", error)
        else:
            return
        await asyncio.sleep(CRD_RETRY_SECONDS)


def guarded(reconciler: Reconciler, cache: Cache) -> Callable[[Key], Awaitable[Again]]:
    """The loop top: a pass that fails is logged once and tried again later, whatever it was."""

    async def one_pass(key: Key) -> Again:
        began = time.monotonic()
        try:
            again = await reconciler.reconcile(*key)
        except ApiError as error:
            log.warning("%s", error, extra=log_format.about(*key))
            word, again = "unavailable", Again(after_seconds=0.0, failed=True)
        except Exception:  # the top of a pass: one engine's bug must not stop the others
            log.exception("a bug: this pass is given up and tried again", extra=log_format.about(*key))
            word, again = "error", Again(after_seconds=0.0, failed=True)
        else:
            word = "refused" if again.failed else "acted" if again.after_seconds == 0 else "settled"
        if again.failed:
            cache.doubt(key)
        metrics.PASSES.labels(result=word).inc()
        metrics.PASS_SECONDS.observe(time.monotonic() - began)
        return again

    return one_pass


def _now() -> datetime:
    return datetime.now(UTC)
