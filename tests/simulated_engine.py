"""An engine of executor Simulated on a cluster with a kubelet: its manifest, who serves for it, and what is done to its pods.

The one job: what tests of ends and deaths have in common. ``space`` is the fixture of ``tests/cluster/conftest.py``.
Not done here: asking it anything (``request_load.py``), deciding what is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

NAME = "sim"
PORT = 8000


def manifest(name: str = NAME, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "metadata": {"name": name},
        "spec": {
            "executor": "Simulated",
            "resources": {"limits": {"memory": "1Gi"}},
            "drain": {"timeoutSeconds": 5},
            **spec,
        },
    }


def change(space: Any, spec: dict[str, Any], *, name: str = NAME) -> None:
    space.kubectl("patch", f"ie/{name}", "--type=merge", "-p", json.dumps({"spec": spec}))


def scaled(space: Any, replicas: int, *, name: str = NAME) -> dict[str, int]:
    """To so many replicas of one pod each; the lives of pods when all serve."""
    space.kubectl("scale", f"ie/{name}", f"--replicas={replicas}")
    space.wait("Progressing=False", name=name)
    space.wait("Ready", name=name)
    lives: dict[str, int] = space.lives()
    assert len(lives) == replicas
    return lives


def pods(space: Any, *, name: str = NAME, role: str = "leader") -> dict[str, dict[str, Any]]:
    """Those of a role that nobody has asked to stop, by name."""
    found = space.items("pods", "-l", f"enginehouse.dev/engine={name},enginehouse.dev/role={role}")
    return {pod["metadata"]["name"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}


def address(pod: dict[str, Any]) -> str:
    """The URL of one leader alone."""
    return f"http://{pod['status']['podIP']}:{PORT}"


def evict(space: Any, pod: str) -> None:
    """As a node's drain does."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": space.namespace}}
    path = f"/api/v1/namespaces/{space.namespace}/pods/{pod}/eviction"
    space.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def all_serve(space: Any, *, replicas: int, gone: Iterable[str] = (), name: str = NAME) -> bool:
    """So many replicas, all of them whole, and nothing is left of these pods."""
    left = {pod["metadata"]["name"] for pod in space.items("pods", "-l", f"enginehouse.dev/engine={name}")}
    status = space.get(f"ie/{name}").get("status", {})
    return left.isdisjoint(gone) and (status.get("replicas"), status.get("readyReplicas")) == (replicas, replicas)


def ranks(space: Any, *, name: str = NAME) -> list[tuple[int, int, str]]:
    """Rank, incarnation and state, of all living replicas."""
    living = [item for item in space.items("ier", "-l", f"enginehouse.dev/engine={name}") if not item["spec"].get("end")]
    rows = [row for item in living for row in item.get("status", {}).get("members", [])]
    return sorted((rank["rank"], rank["incarnation"], rank["state"]) for row in rows for rank in row["ranks"])
