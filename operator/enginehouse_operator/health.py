"""Two small HTTP endpoints: /healthz for the kubelet, /metrics for scrapers.

Invariant: /healthz fails only when a restart would help: a pass that hangs although every request of it has a deadline.
Waiting for the lease is healthy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from . import metrics

LONGEST_PASS_SECONDS: Final = 300.0


async def serve_health(port: int, longest_pass_seconds: Callable[[], float]) -> web.AppRunner:
    """Start serving /healthz; the caller cleans up."""

    async def healthz(_: web.Request) -> web.Response:
        age = longest_pass_seconds()
        if age > LONGEST_PASS_SECONDS:
            return web.Response(status=503, text=f"a pass has been running for {age:.0f} s\n")
        return web.Response(text="ok\n")

    return await _serve(port, "/healthz", healthz)


async def serve_metrics(port: int, queue_depth: Callable[[], int]) -> web.AppRunner:
    """Start serving /metrics; the caller cleans up."""

    async def scrape(_: web.Request) -> web.Response:
        metrics.QUEUE_DEPTH.set(queue_depth())
        return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return await _serve(port, "/metrics", scrape)


async def _serve(port: int, path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.AppRunner:
    app = web.Application()
    app.router.add_get(path, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner
