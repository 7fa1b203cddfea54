"""``kubectl enginehouse`` on a real kubelet: logs that are real, and a drain that goes to its end."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kubectl_plugin import Plugin

pytestmark = pytest.mark.cluster

ENGINE = {
    "apiVersion": "enginehouse.dev/v1alpha1",
    "kind": "InferenceEngine",
    "metadata": {"name": "seen"},
    "spec": {
        "executor": "Simulated",
        "parallelism": {"data": 2, "workersPerMember": 1},
        "resources": {"limits": {"memory": "1Gi"}},
        "context": {"maxLength": 512},
        "drain": {"timeoutSeconds": 1},
    },
}


def test_logs_of_all_members_are_merged_and_followed_and_a_drained_replica_gets_a_successor(space: Any, plugin: Plugin) -> None:
    space.apply(ENGINE)
    space.wait("Ready", name="seen")
    (replica,) = (item["metadata"]["name"] for item in space.items("ier"))
    pods = {pod["metadata"]["name"] for pod in space.items("pods")}

    merged = plugin.run("logs", "seen")
    assert (merged.returncode, merged.stderr) == (0, "")
    lines = merged.stdout.splitlines()
    told = [re.match(r"\[pod/([^/]+)/(engine|monitor)\] ", line) for line in lines]
    assert {match.groups() for match in told if match} == {(pod, name) for pod in pods for name in ("engine", "monitor")}
    started = [number for number, line in enumerate(lines) if ": started " in line]
    ready = [number for number, line in enumerate(lines) if ": ready after " in line]
    assert len(ready) == len(pods)
    assert max(started) < min(ready), f"not one container after the other: {merged.stdout}"
    assert len(plugin.run("logs", "seen", "--since=1ms").stdout.splitlines()) < len(lines)

    with plugin.start("logs", "seen", "--follow") as followed:
        assert followed.stdout is not None
        assert followed.stdout.readline().startswith("[pod/seen-0-")
        drained = plugin.run("drain", replica)
        assert (drained.returncode, drained.stderr) == (0, "")
        assert any("SIGTERM" in line for line in followed.stdout), "it goes on with what comes"
        followed.terminate()
        assert followed.wait(10) != 0

    def succeeded() -> bool:
        living = [item["metadata"]["name"] for item in space.items("ier") if not item["spec"].get("end")]
        return len(living) == 1 and living != [replica]

    space.eventually("a successor", succeeded)
    space.wait("Ready", name="seen")
    assert plugin.run("why", "seen").returncode == 0
