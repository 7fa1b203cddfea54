"""The whole main job on a real kubelet: apply, Ready, a token, scale, a changed spec, a death, suspend, delete."""

from __future__ import annotations

from typing import Any

import pytest

from example_model import example, volume
from kubectl_plugin import Plugin
from simulated_engine import manifest as simulated

pytestmark = pytest.mark.cluster


def engine_pods(space: Any) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in space.items("pods") if pod["status"]["phase"] == "Running"}


def replica_names(space: Any) -> set[str]:
    return {item["metadata"]["name"] for item in space.items("ier") if not item["spec"].get("end")}


def test_a_real_model_from_apply_to_an_answer(space: Any) -> None:
    engine = example("smollm2")
    engine["spec"]["replicas"] = 1
    space.apply(*volume(space.namespace), engine)
    space.wait("Ready", name="smollm2")
    limit = space.get("ie/smollm2")["status"]["maxContextLength"]
    rows = [member for replica in space.items("ier") for member in replica["status"]["members"]]
    assert [rank["maxContextLength"] for row in rows for rank in row["ranks"]] == [limit]

    question = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16, "temperature": 0}
    status, answer = space.post("smollm2", "/v1/chat/completions", question)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"].strip()

    prompt = [1] * (limit - 1)
    over = {"model": "smollm2", "prompt": [*prompt, 1], "max_tokens": 1}
    status, refusal = space.post("smollm2", "/v1/completions", over)
    assert (status, refusal["error"]["code"]) == (400, "context_length_exceeded")


def test_a_simulated_engine_completes_exactly_its_published_limit(space: Any) -> None:
    space.apply(simulated(context={"maxLength": 512}))
    space.wait("Ready", name="sim")
    limit = space.get("ie/sim")["status"]["maxContextLength"]
    assert limit == 512
    status, answer = space.post("sim", "/v1/completions", {"model": "simulated", "prompt": [65] * 500, "max_tokens": 12})
    assert status == 200, answer
    assert answer["usage"]["total_tokens"] == limit
    status, refusal = space.post("sim", "/v1/completions", {"model": "simulated", "prompt": [65] * 500, "max_tokens": 13})
    assert (status, refusal["error"]["code"]) == (400, "context_length_exceeded")


def test_scaling_up_and_down_ends_only_what_is_too_much(space: Any) -> None:
    space.apply(simulated())
    space.wait("Ready", name="sim")
    first = engine_pods(space)
    space.kubectl("scale", "ie/sim", "--replicas=2")
    space.eventually("two replicas serve", lambda: space.get("ie/sim")["status"].get("readyReplicas") == 2)
    assert first.items() <= engine_pods(space).items()
    space.kubectl("scale", "ie/sim", "--replicas=1")
    space.eventually("one pod is left", lambda: len(space.items("pods")) == 1)
    space.wait("Ready", name="sim")


def test_a_changed_spec_replaces_the_replica(space: Any) -> None:
    space.apply(simulated())
    space.wait("Ready", name="sim")
    before = replica_names(space)
    space.apply(simulated(context={"maxLength": 256}))
    space.wait("Ready", name="sim")
    space.eventually("the old replica ended", lambda: not (replica_names(space) & before))
    space.eventually("the new limit is published", lambda: space.get("ie/sim")["status"].get("maxContextLength") == 256)


def test_a_killed_engine_core_comes_back_in_its_pod_and_a_second_time_in_a_successor_that_knows_the_cause(space: Any) -> None:
    space.apply(simulated())
    space.wait("Ready", name="sim")
    before = replica_names(space)
    (pod,) = engine_pods(space)

    def incarnations() -> list[tuple[int, str]]:
        rows = [row for replica in space.items("ier") for row in replica["status"].get("members", [])]
        return [(rank["incarnation"], rank["state"]) for row in rows for rank in row["ranks"]]

    space.installation.kill_engine_cores(pod, namespace=space.namespace)
    space.eventually("the rank is back", lambda: incarnations() == [(2, "Serving")])
    assert replica_names(space) == before
    space.installation.kill_engine_cores(pod, namespace=space.namespace)
    space.eventually("a successor", lambda: bool(replica_names(space) - before))
    space.wait("Ready", name="sim")
    status = space.get("ie/sim")["status"]
    assert status["lastFailure"]["signal"] == 9
    assert status["lastFailure"]["role"] == "engine-core"
    assert status["restarts"] == 2, "the one in place counts too"


def test_suspend_frees_the_pods_and_resume_brings_them_back(space: Any) -> None:
    space.apply(simulated())
    space.wait("Ready", name="sim")
    space.kubectl("patch", "ie/sim", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    space.eventually("no pod is left", lambda: not space.items("pods"))
    space.wait("Ready", name="sim")
    space.kubectl("patch", "ie/sim", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    space.eventually("it serves again", lambda: space.get("ie/sim")["status"].get("readyReplicas") == 1, seconds=120)


def test_a_deleted_engine_leaves_nothing(space: Any) -> None:
    space.apply(simulated())
    space.wait("Ready", name="sim")
    space.kubectl("delete", "ie/sim", "--timeout=60s")
    kinds = "ier,pods,services,roles,rolebindings"
    space.eventually("all children are gone", lambda: not space.items(kinds), seconds=90)


def test_an_operator_restart_touches_no_pod(space: Any) -> None:
    space.apply(simulated())
    space.wait("Ready", name="sim")
    before = engine_pods(space)
    system = ("--namespace", "enginehouse-system")
    cluster = space.installation.cluster
    cluster.kubectl(*system, "rollout", "restart", "deployment", "-l", "app.kubernetes.io/name=enginehouse")
    cluster.kubectl(*system, "rollout", "status", "deployment", "-l", "app.kubernetes.io/name=enginehouse", timeout_seconds=120)
    space.kubectl("scale", "ie/sim", "--replicas=2")  # only a living operator makes the second one
    space.eventually("two replicas serve", lambda: space.get("ie/sim")["status"].get("readyReplicas") == 2, seconds=120)
    assert before.items() <= engine_pods(space).items()


@pytest.mark.parametrize(
    ("change", "reason", "cause", "step"),
    [
        (
            {"image": "localhost/no-such-image:1"},
            *("ImageNotAvailable", "image localhost/no-such-image:1 of container engine", "Correct the image's name and tag"),
        ),
        (
            {"resources": {"limits": {"memory": "900Gi"}}},
            *("Unschedulable", "Insufficient memory", "Add nodes, free what the scheduler misses, or ask for less"),
        ),
        ({"model": {"uri": "pvc://no-such-claim/model"}}, "ClaimNotFound", "'no-such-claim'", "Create the claim, or correct"),
        (
            {"executor": "InProcess", "model": {"uri": "file:///no-such-model"}},
            *("ModelNotFound", "/no-such-model", "Correct spec.model.uri, or put the model where it points"),
        ),
    ],
    ids=[
        "an image that does not exist",
        "more memory than any node has",
        "a claim that does not exist",
        "a model that does not exist",
    ],
)
def test_what_cannot_start_says_why(space: Any, plugin: Plugin, change: dict[str, Any], reason: str, cause: str, step: str) -> None:
    space.apply(simulated(**change))

    def ready_reason() -> str:
        conditions = space.get("ie/sim").get("status", {}).get("conditions", [])
        return next((entry["reason"] for entry in conditions if entry["type"] == "Ready"), "")

    space.eventually(f"Ready says {reason}", lambda: ready_reason() == reason, seconds=60)
    answer = plugin.why("sim")
    assert cause in answer
    assert f"-> {step}" in answer
