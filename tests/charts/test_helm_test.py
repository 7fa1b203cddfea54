"""The pod of `helm test`: restricted, without rights, apart from the operator, and right about what it asks.

Not done here: running it in a cluster (`tests/cluster/test_installation.py`).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from aiohttp import web

from enginehouse_operator.health import serve_health, serve_metrics
from localkube import cluster
from rendered_chart import Render, of_kind

pytestmark = pytest.mark.api


@pytest.fixture
def pod(render: Render) -> dict[str, Any]:
    (found,) = of_kind(render(), "Pod")
    return found


def test_it_is_restricted_has_no_token_and_is_no_operator(
    pod: dict[str, Any], render: Render, api_cluster: cluster.Cluster, namespace: str
) -> None:
    api_cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    said = api_cluster.kubectl("-n", namespace, "create", "--dry-run=server", "-o", "json", "-f-", stdin=json.dumps(pod))
    assert json.loads(said)["spec"].get("volumes", []) == []
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    objects = render()
    (deployment,), (service,) = of_kind(objects, "Deployment"), of_kind(objects, "Service")
    for selector in (deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]):
        assert not selector.items() <= pod["metadata"]["labels"].items()
        assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert pod["spec"]["containers"][0]["image"] == container["image"]


async def ask(pod: dict[str, Any], namespace: str, **ports: int) -> tuple[int, str]:
    """Exit code and words of the pod's command, with an operator on these ports of this machine."""
    (container,) = pod["spec"]["containers"]
    host = f"enginehouse-operator.{namespace}.svc"
    arguments = [
        word.replace(f"{host}:8080", f"127.0.0.1:{ports['health']}").replace(f"{host}:9090", f"127.0.0.1:{ports['metrics']}")
        for word in container["args"]
    ]
    assert host not in " ".join(arguments)
    command = [sys.executable, "-c", *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def port_of(runner: web.AppRunner) -> int:
    """With IPv4; each protocol has its own."""
    port: int = next(address[1] for address in runner.addresses if address[0] == "0.0.0.0")
    return port


async def test_it_succeeds_with_an_operator_that_answers_and_fails_without(pod: dict[str, Any], namespace: str) -> None:
    health = await serve_health(0, lambda: 0.0)
    metrics = await serve_metrics(0, lambda: 0)
    ports = {"health": port_of(health), "metrics": port_of(metrics)}
    assert await ask(pod, namespace, **ports) == (0, "".join(
        f"http://127.0.0.1:{ports[name]}/{path} says {word}\n"
        for name, path, word in (("health", "healthz", "ok"), ("metrics", "metrics", "enginehouse_operator_leader"))
    ))  # fmt: skip
    await metrics.cleanup()
    code, said = await ask(pod, namespace, **ports)
    assert (code, "Connection refused" in said) == (1, True)
    hanging = await serve_health(0, lambda: 1e6)
    code, said = await ask(pod, namespace, **(ports | {"health": port_of(hanging)}))
    assert (code, "503" in said) == (1, True)
    await health.cleanup()
    await hanging.cleanup()
