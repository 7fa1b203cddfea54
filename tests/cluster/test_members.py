"""A replica of two pods on a real kubelet: it serves over both, and losing one ends it as a whole."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.cluster

ENGINE = {
    "apiVersion": "enginehouse.dev/v1alpha1",
    "kind": "InferenceEngine",
    "metadata": {"name": "wide"},
    "spec": {
        "executor": "Simulated",
        # Rank 0 lives in the leader; of rank 1 only the core does.
        "parallelism": {"data": 2, "tensor": 2, "workersPerMember": 2},
        "resources": {"limits": {"memory": "1Gi"}},
        "context": {"maxLength": 512},
        "drain": {"timeoutSeconds": 5},
    },
}


def pods(space: Any) -> dict[str, str]:
    """Names by role, of those that run."""
    running = [pod for pod in space.items("pods") if pod["status"]["phase"] == "Running"]
    return {pod["metadata"]["labels"]["enginehouse.dev/role"]: pod["metadata"]["name"] for pod in running}


def rows(space: Any) -> list[list[tuple[int, str]]]:
    """Ranks of each member of the replica that is not ended."""
    (replica,) = (item for item in space.items("ier") if not item["spec"].get("end"))
    members = replica.get("status", {}).get("members", [])
    return [[(rank["rank"], rank["state"]) for rank in member["ranks"]] for member in members]


def test_a_replica_of_two_pods_answers_and_is_replaced_as_one_when_a_pod_is_deleted(space: Any) -> None:
    space.apply(ENGINE)
    space.wait("Ready", name="wide")
    before = pods(space)
    assert set(before) == {"leader", "worker"}
    assert sorted(rows(space)) == [[(0, "Serving"), (1, "Serving")], [(1, "Serving")]]
    for _ in range(4):
        status, answer = space.post("wide", "/v1/completions", {"model": "simulated", "prompt": [65] * 50, "max_tokens": 12})
        assert status == 200, answer
    (old,) = (item["metadata"]["name"] for item in space.items("ier"))
    space.kubectl("delete", "pod", before["worker"], "--wait=false")

    def replaced() -> bool:
        living = [item["metadata"]["name"] for item in space.items("ier") if not item["spec"].get("end")]
        return len(living) == 1 and living != [old] and not set(before.values()) & set(pods(space).values())

    space.eventually("a successor has the place of the whole replica", replaced, seconds=120)
    space.wait("Ready", name="wide")
    status, answer = space.post("wide", "/v1/completions", {"model": "simulated", "prompt": [65] * 50, "max_tokens": 12})
    assert status == 200, answer
