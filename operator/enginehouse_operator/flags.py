"""The operator's flags.

Invariant: behaviour comes from flags only, parsed once into a frozen value; the environment says where the API server is.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from . import __version__, log_format
from .wanted.pods import PodSettings

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator was started with."""

    pod_settings: PodSettings
    namespace: str | None
    """Only this one is watched and written; None = all."""
    lease_namespace: str
    identity: str
    health_port: int
    metrics_port: int
    workers: int
    log_level: str
    log_format: str


def parse(arguments: Sequence[str] | None = None) -> Flags:
    """Exits with a message when they make no sense."""
    command_line = parser()
    found = command_line.parse_args(arguments)
    if found.workers < 1:
        command_line.error("--workers must be at least 1")
    lease_namespace = found.lease_namespace or found.namespace or _own_namespace()
    if lease_namespace is None:
        command_line.error("outside a pod, --lease-namespace says where the operator's Lease is")
    return Flags(
        pod_settings=PodSettings(
            engine_image=found.engine_image,
            monitor_image=found.monitor_image,
            pull_policy=found.image_pull_policy,
            log_format=found.log_format,
        ),
        namespace=found.namespace,
        lease_namespace=lease_namespace,
        identity=f"{socket.gethostname()}_{os.getpid()}",
        health_port=found.health_port,
        metrics_port=found.metrics_port,
        workers=found.workers,
        log_level=found.log_level,
        log_format=found.log_format,
    )


def parser() -> argparse.ArgumentParser:
    """Every flag with its meaning, also for `docs/reference/settings.md`."""
    found = argparse.ArgumentParser(
        prog="enginehouse-operator",
        description="Turns InferenceEngine objects into replicas, members and their rights, and reports what became of them.",
    )
    found.add_argument("--version", action="version", version=__version__)
    found.add_argument("--engine-image", required=True, help="image of engines that name none (spec.image)")
    found.add_argument("--monitor-image", required=True, help="image of the monitor sidecar: the operator's own")
    found.add_argument(
        "--image-pull-policy",
        choices=("Always", "IfNotPresent", "Never"),
        default="IfNotPresent",
        help="of both containers; spec.template may set another for the engine (default: %(default)s)",
    )
    found.add_argument("--namespace", help="watch this namespace only, with rights in it alone; absent = all namespaces")
    found.add_argument("--lease-namespace", help="where the operator's Lease is (default: --namespace, else the operator's own)")
    found.add_argument("--health-port", type=int, default=8080, help="serves /healthz; 0 = do not (default: %(default)s)")
    found.add_argument("--metrics-port", type=int, default=9090, help="serves /metrics; 0 = do not (default: %(default)s)")
    found.add_argument("--workers", type=int, default=8, help="engines that are worked on at once (default: %(default)s)")
    found.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least that is logged (default: %(default)s)",
    )
    found.add_argument(
        "--log-format",
        choices=log_format.FORMATS,
        default="text",
        help="also of the pods that are made: text for people, json for collectors, one object a line (default: %(default)s)",
    )
    return found


def _own_namespace() -> str | None:
    try:
        return _NAMESPACE_FILE.read_text().strip() or None
    except OSError:
        return None
