"""``kubectl enginehouse why`` on broken engines: the operator's own passes write the objects, in memory; cause and next step are
named, on one screen."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from memory_stage import PODS, REPLICAS, Stage, leader_says

from enginehouse_operator import failures, names, reasons
from enginehouse_operator.failures import POLICIES, Failure
from enginehouse_operator.kubectl.next_steps import DELETING, NEXT_STEPS, NOT_OBSERVED, OTHERWISE, next_step
from enginehouse_operator.kubectl.text import Screen
from enginehouse_operator.kubectl.why import Answer, why
from enginehouse_operator.kubectl.why_text import why_text
from enginehouse_operator.kubernetes_client import ApiError, Forbidden, Invalid

PAGE = Path(__file__).parents[3] / "docs" / "kubectl-plugin.md"
LINES_OF_A_SCREEN = 24


def answer(stage: Stage, *events: dict[str, Any]) -> Answer:
    engine = stage.api.objects["inferenceengines", "e"]
    return why(engine, replicas=stage.api.of(REPLICAS), pods=stage.api.of(PODS), events=events)


async def starting(**spec: Any) -> Stage:
    """Its pods are made, and nobody has said anything of them."""
    stage = Stage(**spec)
    await stage.settle()
    return stage


async def serving(**spec: Any) -> Stage:
    stage = await starting(**spec)
    stage.serve()
    await stage.settle()
    assert answer(stage).ready
    return stage


async def told_by_pods(stage: Stage, **status: Any) -> Stage:
    for pod in stage.api.of(PODS):
        stage.change(PODS, pod["metadata"]["name"], status={"phase": "Pending", **status})
    await stage.settle()
    return stage


async def ended(stage: Stage, *, exit_code: int, **told: Any) -> Stage:
    """The engine container of the only pod is over, with its launcher's last words."""
    (pod,) = stage.api.of(PODS)
    words = msgspec.json.encode(Failure(role="engine-core", rank=0, incarnation=1, pid=9, **told)).decode()
    over = {"exitCode": exit_code, "reason": "Error", "message": words, "finishedAt": "2026-01-01T00:59:00Z"}
    container = {"name": names.ENGINE_CONTAINER, "image": "e:1", "state": {"terminated": over}}
    stage.change(PODS, pod["metadata"]["name"], status={"phase": "Failed", "containerStatuses": [container], "conditions": []})
    await stage.settle()
    return stage


def refused(error: ApiError) -> Callable[[str, str, str], ApiError | None]:
    return lambda verb, plural, _: error if plural == PODS and verb in ("create", "dry-run") else None


async def bad_image() -> Stage:
    waiting = {"reason": "ErrImagePull", "message": "not found"}
    container = {"name": names.ENGINE_CONTAINER, "image": "registry/engine:nope", "state": {"waiting": waiting}}
    return await told_by_pods(await starting(), containerStatuses=[container])


async def unschedulable() -> Stage:
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    return await told_by_pods(await starting(), conditions=[condition])


async def model_missing() -> Stage:
    return await ended(await starting(), exit_code=78, class_="ModelNotFound", message="there is no model at /models/m")


async def context_below_minimum() -> Stage:
    text = "context.minLength asks for at least 8192 tokens and only 144 fit: give it at least 100 bytes more memory"
    return await ended(await starting(context={"minLength": 8192}), exit_code=78, class_="ContextTooSmall", message=text)


async def budget_spent() -> Stage:
    stage = await serving(restart={"maxRestarts": 0})
    told = {"class_": "OutOfMemory", "message": "engine core of rank 0 was killed", "signal": 9, "evidence": "the last line"}
    return await ended(stage, exit_code=137, **told)


async def placement_lacking() -> Stage:
    stage = await starting(executor="Ray", model={"uri": "file:///m"}, parallelism={"data": 2})
    leader_says(stage, {0: "Serving", 1: "Pending"}, {1: "needs accelerator: 1, no node has it"})
    await stage.settle()
    return stage


async def rank_hung() -> Stage:
    stage = await serving()
    (replica,) = stage.api.of(REPLICAS)
    (row,) = replica["status"]["members"]
    record = {
        "role": "engine-core", "rank": 0, "incarnation": 1, "pid": 9, "signal": 9, "class": "Hang",
        "message": "engine core of rank 0 has requests and has computed no step for 120 s",
        "evidence": "Current thread 0x1:\n  File \"step.py\", line 7 in step", "detectedTime": "2026-01-01T00:59:00Z",
    }  # fmt: skip
    row |= {"ranks": [row["ranks"][0] | {"state": "Restarting", "incarnation": 2}], "failures": [record]}
    stage.change(REPLICAS, replica["metadata"]["name"], status={"members": [row]})
    await stage.settle()
    return stage


async def node_lost() -> Stage:
    """Given up by Kubernetes; its successor finds no other node."""
    stage = await serving()
    (pod,) = stage.api.of(PODS)
    target = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    stage.change(
        PODS, pod["metadata"]["name"], metadata={"deletionTimestamp": "2026-01-01T01:01:00Z"}, status={"conditions": [target]}
    )
    await stage.settle()
    return stage


async def quota_exceeded() -> Stage:
    stage = Stage()
    words = 'pods "e-0" is forbidden: exceeded quota: team, requested: pods=1, used: pods=4, limited: pods=4'
    stage.api.refuse = refused(Forbidden("POST pods", status=403, message=words))
    for _ in range(3):
        await stage.one_pass()
    return stage


async def webhook_refuses() -> Stage:
    stage = Stage()
    words = 'admission webhook "images.example.com" denied the request: only images of registry.example.com'
    stage.api.refuse = refused(Forbidden("POST pods", status=403, message=words))
    await stage.one_pass()
    return stage


async def policy_refuses() -> Stage:
    stage = Stage()
    words = 'pods "e-0" is forbidden: ValidatingAdmissionPolicy "owners" denied request: a label team is wanted'
    stage.api.refuse = refused(Invalid("POST pods", status=422, message=words))
    await stage.one_pass()
    return stage


Broken = Callable[[], Awaitable[Stage]]


@pytest.mark.parametrize(
    ("broken", "chain", "cause", "step"),
    [
        (bad_image, [reasons.IMAGE_NOT_AVAILABLE], "image registry/engine:nope of container engine", "name and tag"),
        (unschedulable, [reasons.UNSCHEDULABLE], "3 Insufficient nvidia.com/gpu", "Add nodes"),
        (model_missing, [reasons.MODEL_NOT_FOUND], "there is no model at /models/m", "spec.model.uri"),
        (context_below_minimum, [reasons.CONTEXT_TOO_SMALL], "only 144 fit", "lower spec.context.minLength"),
        (budget_spent, [reasons.RESTART_BUDGET_SPENT, "OutOfMemory"], "failed 1 times", "raise resources.limits.memory"),
        (placement_lacking, [reasons.PLACEMENT_LACKING], "bundle 0 of rank 1 needs accelerator: 1", "spec.parallelism"),
        (rank_hung, [reasons.RANK_RESTARTING, "Hang"], "has computed no step for 120 s", "spec.hang.stallSeconds"),
        (node_lost, [reasons.STARTING, failures.NODE_LOST], "its node is gone", "successor starts on another node"),
        (quota_exceeded, [reasons.QUOTA_EXCEEDED], "exceeded quota: team", "Raise the quota"),
        (webhook_refuses, [reasons.FORBIDDEN], 'webhook "images.example.com" denied', "admission policy or webhook"),
        (policy_refuses, [reasons.POD_REJECTED], "a label team is wanted", "admission policy"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_broken_engine_is_told_with_cause_and_next_step_on_one_screen(
    broken: Broken, chain: list[str], cause: str, step: str
) -> None:
    found = answer(await broken())
    assert not found.ready
    assert [finding.reason for finding in found.findings] == chain
    text = why_text(found, screen=Screen())
    flat = " ".join(text.split())
    assert flat.startswith("e is not Ready")
    assert flat.count(cause) == 1, "said, and said once"
    assert step.lower() in flat.lower()
    assert all(finding.next_step.words in flat and finding.next_step.command in text for finding in found.findings)
    assert len(text.splitlines()) <= LINES_OF_A_SCREEN
    assert max(map(len, text.splitlines())) <= 130, "commands are in one line, everything else is wrapped"


async def test_what_a_person_has_to_do_is_a_command_for_this_very_engine() -> None:
    found = answer(await budget_spent())
    assert found.stalled
    assert found.findings[0].next_step.command.startswith("kubectl annotate --overwrite ie e -n n enginehouse.dev/resume-after=")
    assert "will not be without you" in why_text(found, screen=Screen())


async def test_the_evidence_of_a_death_is_shown_at_its_end_and_without_what_moves_the_cursor() -> None:
    found = answer(await rank_hung())
    assert 'File "step.py", line 7 in step' in why_text(found, screen=Screen())
    stage = await rank_hung()
    (replica,) = stage.api.of(REPLICAS)
    (row,) = replica["status"]["members"]
    noisy = "\n".join(f"line {number}\x1b[2J" for number in range(99))
    row["failures"][0] |= {"evidence": noisy}
    stage.change(REPLICAS, replica["metadata"]["name"], status={"members": [row]})
    text = why_text(answer(stage), screen=Screen())
    assert "line 98" in text
    assert "line 90" not in text
    assert "\x1b" not in text


async def test_a_class_of_an_engines_own_invention_moves_no_cursor() -> None:
    stage = await rank_hung()
    (replica,) = stage.api.of(REPLICAS)
    (row,) = replica["status"]["members"]
    row["failures"][0] |= {"class": "\x1b[2JSignal"}
    stage.change(REPLICAS, replica["metadata"]["name"], status={"members": [row]})
    await stage.settle()
    text = why_text(answer(stage), screen=Screen())
    assert "[2JSignal  " in text, "as a reason"
    assert "\x1b" not in text


async def test_an_engine_that_is_ready_says_so_in_one_line() -> None:
    found = answer(await serving())
    assert why_text(found, screen=Screen()) == "e is Ready: 1 of 1 replicas serve (AllReplicasServe)\n"
    assert found.findings == ()


async def test_a_pod_that_waits_for_what_only_an_event_tells_is_told_with_it() -> None:
    stage = await starting()
    (pod,) = stage.api.of(PODS)
    words = 'MountVolume.SetUp failed for volume "api-key" : secret "keys" not found'
    event = {"involvedObject": {"uid": pod["metadata"]["uid"]}, "reason": "FailedMount", "message": words}
    older = event | {"reason": "Older", "lastTimestamp": "2026-01-01T00:00:00Z"}
    other = event | {"involvedObject": {"uid": "another pod"}, "reason": "NotOurs", "lastTimestamp": "2026-01-01T00:59:00Z"}
    newest = event | {"lastTimestamp": "2026-01-01T00:30:00Z"}
    found = answer(stage, newest, older, other)
    assert [finding.reason for finding in found.findings] == [reasons.STARTING, "FailedMount"]
    assert words in found.findings[1].message
    assert "kubectl describe pods -l enginehouse.dev/engine=e -n n" in found.findings[1].next_step.command


async def test_what_the_predecessor_of_a_replica_that_serves_died_of_is_not_told() -> None:
    stage = await serving(replicas=2)
    first, second = stage.api.of(REPLICAS)
    stage.change(REPLICAS, first["metadata"]["name"], spec={"failures": [{"class": "Signal", "message": "long ago"}]})
    stage.change(REPLICAS, second["metadata"]["name"], spec={"failures": [{"class": "Hang", "message": "lately"}]})
    (pod,) = (pod for pod in stage.api.of(PODS) if pod["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"])
    stage.change(PODS, pod["metadata"]["name"], status={"conditions": []})
    await stage.settle()
    assert [finding.reason for finding in answer(stage).findings] == [reasons.STARTING, "Hang"]


async def test_events_of_other_pods_and_of_pods_that_have_started_are_not_told() -> None:
    stage = await starting()
    (pod,) = stage.api.of(PODS)
    event = {"involvedObject": {"uid": "another pod"}, "reason": "FailedMount", "message": "not ours"}
    assert [finding.reason for finding in answer(stage, event).findings] == [reasons.STARTING]
    row = {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"], "state": "Starting"}
    stage.change(REPLICAS, stage.api.of(REPLICAS)[0]["metadata"]["name"], status={"members": [row]})
    old = event | {"involvedObject": {"uid": pod["metadata"]["uid"]}, "message": "over since"}
    assert "FailedMount" not in {finding.reason for finding in answer(stage, old).findings}


async def test_many_replicas_with_the_same_trouble_are_one_finding_on_the_screen_and_all_in_the_answer() -> None:
    stage = await starting(replicas=8)
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    await told_by_pods(stage, conditions=[condition])
    found = answer(stage)
    assert [finding.reason for finding in found.findings] == [reasons.UNSCHEDULABLE] * 8
    text = why_text(found, screen=Screen())
    assert text.count("Unschedulable") == 1
    assert "and 7 more" in text


async def test_without_an_operator_it_is_its_silence_that_is_told_and_what_the_pods_say() -> None:
    never = Stage()
    found = answer(never)
    assert [finding.reason for finding in found.findings] == [NOT_OBSERVED]
    assert "app.kubernetes.io/component=operator" in found.findings[0].next_step.command
    stale = await serving()
    stale.change("inferenceengines", "e", metadata={"generation": 2})
    assert "generation 2, the conditions are about 1" in answer(stale).findings[0].message
    (pod,) = stale.api.of(PODS)
    stale.change("inferenceengines", "e", metadata={"generation": 1})
    assert answer(stale).ready
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    stale.change(PODS, pod["metadata"]["name"], status={"conditions": [condition]})
    chain = [finding.reason for finding in answer(stale).findings]
    assert chain == [NOT_OBSERVED, reasons.UNSCHEDULABLE], "the last word was Ready, and is not true any more"


async def test_an_engine_that_is_being_deleted_says_so_first() -> None:
    stage = await starting()
    stage.change("inferenceengines", "e", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert answer(stage).findings[0].reason == DELETING


# Reasons that neither Ready nor Stalled ever has with something left to do: what is well, what a replica ends or begins for, what
# the operator did, and what only Available and ContextFit say beside Ready.
NEVER = {
    *(reasons.ALL_REPLICAS_SERVE, reasons.SUSPENDED, reasons.ZERO_REPLICAS, reasons.SOME_REPLICAS_SERVE, reasons.SETTLED),
    *(reasons.FITS, reasons.SERVING, reasons.LIVING, reasons.PLACED, reasons.NO_REPLICA_SERVES, reasons.NOT_KNOWN),
    *(reasons.SCALE_DOWN, reasons.ROLLOUT, reasons.SUPERSEDED, reasons.MEMBER_FAILED, reasons.MEMBER_LOST),
    *(reasons.MEMBER_REMOVED, reasons.SCALE_UP, reasons.SUCCESSOR, reasons.RANKS_ADDED, reasons.RANKS_REMOVED),
    *(reasons.MEMBER_CREATED, reasons.MEMBER_STOPPED, reasons.LEFT_SERVICE, reasons.SUCCEEDED, reasons.APPLIED),
}


def test_every_reason_that_keeps_an_engine_from_ready_and_every_class_of_failures_has_a_next_step() -> None:
    wanted = set(reasons.MEANINGS) - NEVER | set(POLICIES) | {NOT_OBSERVED, DELETING}
    assert set(NEXT_STEPS) == wanted
    assert next_step("SomethingNewer") == OTHERWISE


def test_the_page_has_every_next_step() -> None:
    rows = re.findall(r"^\| `([^`|]+)` \| ([^|]+) \|$", PAGE.read_text().partition("## Next steps")[2], re.MULTILINE)
    assert {key: text.strip() for key, text in rows} == {key: step.words for key, step in NEXT_STEPS.items()}
