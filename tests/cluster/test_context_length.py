"""The context contract on a real kubelet: memory decides, the smallest rank limits, what is too small stops readably."""

from __future__ import annotations

from typing import Any

import pytest

from kubectl_plugin import Plugin

pytestmark = pytest.mark.cluster

MIB = 1 << 20
BLOCK_BYTES = 368_640
"""One KV block of the simulated model, 16 tokens."""


def simulated(memory_mib: int, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "metadata": {"name": "sim"},
        "spec": {
            "executor": "Simulated",
            "resources": {"limits": {"memory": f"{memory_mib}Mi"}, "requests": {"cpu": "50m", "memory": "100Mi"}},
            "drain": {"timeoutSeconds": 1},
            **spec,
        },
    }


def status(space: Any) -> dict[str, Any]:
    found: dict[str, Any] = space.get("ie/sim").get("status", {})
    return found


def condition(space: Any, kind: str) -> tuple[str, str, str]:
    for found in status(space).get("conditions", ()):
        if found["type"] == kind and found["observedGeneration"] == space.get("ie/sim")["metadata"]["generation"]:
            return found["status"], found["reason"], found["message"]
    return "", "", ""


def ranks(space: Any) -> list[dict[str, Any]]:
    """Of the one live replica."""
    (live,) = (item for item in space.items("ier") if not item["spec"].get("end"))
    return [rank for row in live["status"]["members"] for rank in row["ranks"]]


def test_less_memory_fits_less_and_the_last_small_replica_that_goes_raises_the_value(space: Any) -> None:
    space.apply(simulated(448, replicas=2))
    space.wait("Ready", name="sim")
    small = status(space)["maxContextLength"]
    before = {item["metadata"]["name"] for item in space.items("ier")}
    space.apply(simulated(512, replicas=2))
    seen = []

    def all_replaced() -> bool:
        seen.append((status(space)["maxContextLength"], condition(space, "Ready")[0] == "True"))
        return seen[-1][1] and before.isdisjoint(item["metadata"]["name"] for item in space.items("ier"))

    space.eventually("the rollout is over", all_replaced, seconds=120)
    assert {length for length, is_ready in seen if not is_ready} == {small}, "a small one was still there"
    assert small < status(space)["maxContextLength"] < 8192


def test_ranks_of_one_container_share_its_memory_honestly(space: Any) -> None:
    limit_mib = 640
    space.apply(simulated(limit_mib, parallelism={"data": 2}))
    space.wait("Ready", name="sim")
    first, second = ranks(space)
    assert [first["rank"], second["rank"]] == [0, 1]
    assert first["maxContextLength"] == second["maxContextLength"] == status(space)["maxContextLength"] < 8192
    taken = sum((rank["kvBlocks"] + 1) * BLOCK_BYTES + 32 * MIB for rank in (first, second))
    assert taken <= limit_mib * MIB * 0.9


def test_the_rank_with_the_smaller_budget_limits_its_replica(space: Any) -> None:
    weights = {"spec": {"containers": [{"name": "engine", "args": [f"--simulated-weights=1={80 * MIB}"]}]}}
    space.apply(simulated(640, parallelism={"data": 2}, template=weights))
    space.wait("Ready", name="sim")
    large, little = ranks(space)
    limit = status(space)["maxContextLength"]
    assert limit == little["maxContextLength"] < large["maxContextLength"]
    assert status(space)["contextLimitedBy"]["rank"] == 1
    fits = {"model": "simulated", "prompt": [65] * (limit - 4), "max_tokens": 4, "ignore_eos": True}
    for more, expected in ((0, 200), (1, 400)):
        code, answer = space.post("sim", "/v1/completions", fits | {"max_tokens": 4 + more})
        assert code == expected, answer


def test_a_minimum_that_does_not_fit_stops_readably_without_a_crash_loop(space: Any, plugin: Plugin) -> None:
    space.apply(simulated(448, context={"minLength": 8192}))
    space.eventually("ContextFit says why", lambda: condition(space, "ContextFit")[:2] == ("False", "ContextTooSmall"))
    assert "a context of at least 8192 tokens was asked for" in condition(space, "ContextFit")[2]
    assert condition(space, "Stalled")[:2] == ("True", "ContextTooSmall")
    answer = plugin.why("sim")
    assert "a context of at least 8192 tokens was asked for" in answer
    assert "-> Give the engine more memory (spec.resources, memory.utilizationPercent), or lower spec.context.minLength." in answer
    space.eventually("its pod is removed", lambda: not space.items("pods"))
    assert [item["spec"]["epoch"] for item in space.items("ier")] == [1]
    space.apply(simulated(448, context={"minLength": 1024}))
    space.wait("ContextFit", name="sim")
    space.wait("Ready", name="sim")


def test_a_killed_rank_comes_back_in_its_pod_while_the_other_serves_and_a_second_death_replaces_the_replica(space: Any) -> None:
    space.apply(simulated(640, parallelism={"data": 2}))
    space.wait("Ready", name="sim")
    (pod,) = (item["metadata"]["name"] for item in space.items("pods"))
    space.installation.kill_engine_cores(pod, namespace=space.namespace, rank=1)
    space.eventually("the failure is told", lambda: status(space).get("lastFailure", {}).get("rank") == 1)
    code, answer = space.post("sim", "/v1/completions", {"model": "simulated", "prompt": [65] * 4, "max_tokens": 4})
    assert code == 200, answer
    space.eventually("the rank is back", lambda: [rank["incarnation"] for rank in ranks(space)] == [1, 2])
    space.wait("Ready", name="sim")
    assert [item["metadata"]["name"] for item in space.items("pods")] == [pod]
    assert status(space)["restarts"] == 1
    space.installation.kill_engine_cores(pod, namespace=space.namespace, rank=1)
    space.eventually("a successor serves", lambda: [item["spec"]["epoch"] for item in space.items("ier")] == [2], seconds=90)
    space.wait("Ready", name="sim")
    assert status(space)["restarts"] == 2
