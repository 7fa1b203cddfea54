"""The kubelet's own best case: how long the API takes to show that a pod's main process was killed, without anything of ours in it.

The one job: pods of one sleeping process, kill -9 to it from the host, and a watch. Does not judge.
"""

from __future__ import annotations

import time
from typing import Any

import pod_processes
import yaml
from kubernetes_watch import Event, Watches

from localkube.installation import Installation

NAMESPACE = "bench"
BATCH = 10
START_SECONDS = 120.0
WAIT_SECONDS = 60.0


def pod(name: str, image: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": "sleeper",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-c", "import signal; signal.pause()"],
                }
            ],
        },
    }


def measure(installation: Installation, watches: Watches, rows: list[dict[str, Any]], *, kills: int) -> None:
    """Append one row for each kill."""
    done = 0
    while done < kills:
        count = min(BATCH, kills - done)
        _batch(installation, watches, rows, [f"plain-{done + number}" for number in range(count)])
        done += count
        print(f"plain pods: {done} of {kills} kills", flush=True)


def _batch(installation: Installation, watches: Watches, rows: list[dict[str, Any]], names: list[str]) -> None:
    watches.forget()
    manifests = yaml.safe_dump_all([pod(name, installation.operator_image) for name in names])
    installation.kubectl("apply", "-f", "-", namespace=NAMESPACE, stdin=manifests)
    watches.pods.until(
        "the plain pods run",
        lambda pods: all(pods.get(name, {}).get("status", {}).get("phase") == "Running" for name in names),
        seconds=START_SECONDS,
    )
    for name in names:
        processes = pod_processes.of_pod(watches.pods.latest()[name]["metadata"]["uid"])
        (pid,) = (process.pid for process in processes if process.command == "python")
        with pod_processes.pidfds([pid]) as opened:
            at = pod_processes.kill(opened[pid])
        seen = watches.pods.first(f"{name} ended", lambda seen, name=name: _ended(seen, name), since=at, seconds=WAIT_SECONDS)
        rows.append({"container_terminated_seconds": round(seen.at - at, 4)})
        # Not in step with the kubelet's own turns, which are a second apart.
        time.sleep(0.37)
    installation.kubectl("delete", "pods", *names, "--wait=false", namespace=NAMESPACE)
    watches.pods.until("the plain pods are gone", lambda pods: not pods, seconds=WAIT_SECONDS)


def _ended(seen: Event, name: str) -> bool:
    containers = seen.found.get("status", {}).get("containerStatuses", [])
    return seen.name == name and any("terminated" in container["state"] for container in containers)
