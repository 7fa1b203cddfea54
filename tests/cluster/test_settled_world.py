"""A settled world is quiet: no writes by operator or monitors, also under traffic; and the operator is small."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from audit_log import whole_lines
from localkube.installation import SYSTEM_NAMESPACE

pytestmark = pytest.mark.cluster

QUIET_SECONDS = 60
OPERATOR_LIMIT_BYTES = 120 * 1024 * 1024
WRITES = {"create", "update", "patch", "delete", "deletecollection"}

RESIDENT = """
import re
print(int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/1/status').read()).group(1)) * 1024)
"""


def engine(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "metadata": {"name": name},
        "spec": {"executor": "Simulated", "resources": {"limits": {"memory": "1Gi"}}},
    }


def our_writes(audit_log: Path, *, offset: int, namespace: str) -> list[str]:
    """Writes by operator and monitors since `offset` bytes, but for the operator's own Lease.

    Other tests' namespaces may still be on their way out, and do not count.
    """
    found = []
    for line in whole_lines(audit_log, since=offset):
        event = json.loads(line)
        user, target = event["user"]["username"], event.get("objectRef", {})
        ours = user.startswith((f"system:serviceaccount:{SYSTEM_NAMESPACE}:", f"system:serviceaccount:{namespace}:"))
        here = target.get("namespace", "") in ("", SYSTEM_NAMESPACE, namespace)
        if ours and here and event["verb"] in WRITES and target.get("resource") != "leases":
            found.append(f"{user} {event['verb']} {event['requestURI']}")
    return found


def ask_until(stop: threading.Event, base: str, answers: list[int], post: Any) -> None:
    while not stop.is_set():
        status, _ = post(f"{base}/v1/completions", {"model": "simulated", "prompt": "steady traffic", "max_tokens": 8})
        answers.append(status)


def test_a_settled_world_is_quiet_under_traffic_and_the_operator_is_small(space: Any, post: Any) -> None:
    audit_log = space.installation.cluster.audit_log
    if audit_log is None:
        pytest.skip("KUBECONFIG names the cluster: its audit log is not ours to read")
    space.apply(engine("one"), engine("two"))
    for name in ("one", "two"):
        space.wait("Ready", name=name)
    space.eventually("Progressing is over", lambda: all(_settled(space.get(f"ie/{name}")) for name in ("one", "two")))
    stop, answers = threading.Event(), list[int]()
    with space.installation.reached("one", namespace=space.namespace) as base:
        client = threading.Thread(target=ask_until, args=(stop, base, answers, post))
        client.start()
        offset = audit_log.stat().st_size
        # The sentence is "no write in a minute": only a minute can show it.
        time.sleep(QUIET_SECONDS)
        writes = our_writes(audit_log, offset=offset, namespace=space.namespace)
        stop.set()
        client.join()
    assert writes == []
    assert set(answers) == {200}
    assert len(answers) > QUIET_SECONDS

    listing = space.installation.cluster.kubectl("-n", SYSTEM_NAMESPACE, "get", "pods", "-o", "name").split()
    for pod in listing:
        said = space.installation.cluster.kubectl("-n", SYSTEM_NAMESPACE, "exec", pod, "--", "python3", "-c", RESIDENT)
        resident_bytes = int(re.findall(r"\d+", said)[-1])
        assert resident_bytes < OPERATOR_LIMIT_BYTES, f"{pod} has {resident_bytes / 2**20:.0f} MiB resident"


def _settled(found: dict[str, Any]) -> bool:
    conditions = {entry["type"]: entry["status"] for entry in found["status"]["conditions"]}
    return conditions["Ready"] == "True" and conditions["Progressing"] == "False"
