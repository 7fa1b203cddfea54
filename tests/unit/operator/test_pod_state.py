"""What a pod's status says, in words that do not move on their own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse_operator import reasons
from enginehouse_operator.pod_state import is_node_lost, pod_failure, pod_problem


def a_pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "status": status}


def container(name: str = "engine", **state: Any) -> dict[str, Any]:
    return {"name": name, "image": "registry/engine:1", "state": state}


def waiting(reason: str, message: str = "", name: str = "engine") -> dict[str, Any]:
    return container(name, waiting={"reason": reason, "message": message})


def unscheduled(message: str, reason: str = "Unschedulable") -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return a_pod(phase="Pending", conditions=[condition])


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), reasons.UNSCHEDULABLE, "nvidia.com/gpu"),
        (unscheduled('0/1: persistentvolumeclaim "models" not found'), reasons.CLAIM_NOT_FOUND, "'models'"),
        (unscheduled("", "SchedulingGated"), reasons.UNSCHEDULABLE, "gates"),
        (a_pod(containerStatuses=[waiting("ErrImagePull", "x")]), reasons.IMAGE_NOT_AVAILABLE, "registry/engine:1"),
        (a_pod(containerStatuses=[waiting("ErrImageNeverPull")]), reasons.IMAGE_NOT_AVAILABLE, "may not be pulled"),
        (a_pod(containerStatuses=[waiting("InvalidImageName")]), reasons.IMAGE_NOT_AVAILABLE, "engine"),
        (a_pod(initContainerStatuses=[waiting("ErrImagePull", name="monitor")]), reasons.IMAGE_NOT_AVAILABLE, "monitor"),
        (
            a_pod(containerStatuses=[waiting("CreateContainerConfigError", 'secret "hf" not found')]),
            reasons.SECRET_NOT_FOUND,
            "'hf'",
        ),
        (
            a_pod(containerStatuses=[waiting("CreateContainerConfigError", "couldn't find key token in Secret n/hf")]),
            reasons.SECRET_NOT_FOUND,
            "key token",
        ),
        (
            a_pod(containerStatuses=[waiting("CreateContainerConfigError", 'configmap "c" not found')]),
            reasons.CONTAINER_NOT_CREATED,
            'configmap "c"',
        ),
        (a_pod(containerStatuses=[waiting("CreateContainerError", "no device")]), reasons.CONTAINER_NOT_CREATED, "no device"),
        (
            a_pod(initContainerStatuses=[waiting("CrashLoopBackOff", "back-off 10s", "monitor")]),
            reasons.MONITOR_DOWN,
            "kubectl logs p -c monitor",
        ),
    ],
)
def test_a_pod_that_does_not_run_says_why_and_what_to_do(pod: dict[str, Any], reason: str, words: str) -> None:
    problem = pod_problem(pod)
    assert problem is not None
    assert problem.reason == reason
    assert words in problem.message


def test_the_two_faces_of_a_missing_image_read_the_same() -> None:
    first = pod_problem(a_pod(containerStatuses=[waiting("ErrImagePull", "rpc error: code 5")]))
    second = pod_problem(a_pod(containerStatuses=[waiting("ImagePullBackOff", "Back-off pulling image, 3rd time")]))
    assert first == second


@pytest.mark.parametrize(
    "pod",
    [
        a_pod(phase="Pending"),
        a_pod(phase="Pending", containerStatuses=[waiting("ContainerCreating")]),
        a_pod(phase="Pending", containerStatuses=[waiting("PodInitializing")]),
        a_pod(phase="Running", containerStatuses=[container(running={})]),
        a_pod(phase="Failed", containerStatuses=[waiting("ErrImagePull")]),
    ],
)
def test_a_pod_on_its_way_has_no_problem(pod: dict[str, Any]) -> None:
    assert pod_problem(pod) is None


def ended(**terminated: Any) -> dict[str, Any]:
    return a_pod(phase="Failed", containerStatuses=[container(terminated=terminated)])


LAST_WORDS = json.dumps(
    {"class": "Signal", "message": "m", "role": "worker", "rank": 1, "incarnation": 2, "pid": 5, "exitCode": None, "signal": 9}
)


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (
            ended(exitCode=137, message=LAST_WORDS),
            {"class_": "Signal", "signal": 9, "role": "worker", "rank": 1, "exit_code": None},
        ),
        (ended(exitCode=137, reason="OOMKilled"), {"class_": "OutOfMemory", "signal": 9, "role": "launcher"}),
        (ended(exitCode=139), {"class_": "Signal", "signal": 11}),
        (ended(exitCode=1, message="not json"), {"class_": "ExitCode", "exit_code": 1, "message": "not json"}),
        (ended(exitCode=78), {"class_": "InvalidConfig", "exit_code": 78}),
        (ended(exitCode=1, message='{"class": 3}'), {"class_": "ExitCode", "exit_code": 1}),
        (a_pod(phase="Failed", reason="Evicted", message="low on memory"), {"class_": "Evicted", "message": "low on memory"}),
        (
            a_pod(phase="Failed", reason="Evicted", message="low", containerStatuses=[container(terminated={"exitCode": 137})]),
            {"class_": "Evicted", "message": "low", "exit_code": 137},
        ),
        (a_pod(phase="Failed"), {"class_": "Unknown"}),
        (a_pod(phase="Failed", reason="Terminated", message="imminent node shutdown"), {"class_": "Removed"}),
        (
            a_pod(
                phase="Failed",
                conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": "no node"}],
            ),
            {"class_": "NodeLost"},
        ),
        # Words of any image, which the schema of spec.end would refuse: then the replica could never end.
        (ended(exitCode=1, message=json.dumps({"class": "x" * 129})), {"class_": "ExitCode", "exit_code": 1}),
        (ended(exitCode=1, message=json.dumps({"class": "A", "rank": -1})), {"class_": "ExitCode", "exit_code": 1}),
        (ended(exitCode=1, message=json.dumps({"class": "A", "pid": 2**40})), {"class_": "ExitCode", "exit_code": 1}),
        (ended(exitCode=1, message='{"x":' + "[" * 4000), {"class_": "ExitCode", "exit_code": 1}),
        (ended(exitCode=1, message=json.dumps({"class": "A", "detectedTime": "2026-01-01T00:00:00"})), {"class_": "ExitCode"}),
        (
            a_pod(phase="Failed", containerStatuses=[container("helper", terminated={"exitCode": 3, "reason": "Error"})]),
            {"class_": "ExitCode", "exit_code": 3, "role": "helper"},
        ),
    ],
)
def test_what_a_pod_died_of(pod: dict[str, Any], expected: dict[str, Any]) -> None:
    failure = pod_failure(pod)
    assert failure is not None
    assert {key: getattr(failure, key) for key in expected} == expected


@pytest.mark.parametrize("phase", ["Pending", "Running", "Succeeded"])
def test_a_pod_that_lives_or_ended_in_order_died_of_nothing(phase: str) -> None:
    assert pod_failure(a_pod(phase=phase, containerStatuses=[container(terminated={"exitCode": 0})])) is None


def beside(monitor: dict[str, Any], *, engine: dict[str, Any] | None = None) -> dict[str, Any]:
    """A pod whose engine runs unless it is said otherwise."""
    engine = {"running": {}} if engine is None else engine
    return a_pod(
        phase="Running",
        initContainerStatuses=[container("monitor", **monitor)],
        containerStatuses=[container(**engine)],
    )


@pytest.mark.parametrize(
    "monitor",
    [
        {"terminated": {"exitCode": 1}},
        {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
        {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
    ],
)
def test_a_monitor_that_does_not_run_is_told_with_its_pod_and_harms_no_engine_that_runs(monitor: dict[str, Any]) -> None:
    problem = pod_problem(beside(monitor))
    assert problem is not None
    assert (problem.reason, problem.is_harmless, problem.wants_person) == (reasons.MONITOR_DOWN, True, False)
    assert "monitor of pod p" in problem.message
    assert "kubectl logs p -c monitor --previous" in problem.message
    assert problem == pod_problem(beside({"terminated": {"exitCode": 2}})), "words that do not move with its restarts"


def test_a_monitor_is_not_missed_that_runs_or_is_not_known_or_ends_with_its_pod() -> None:
    assert pod_problem(beside({"running": {}})) is None
    assert pod_problem(a_pod(phase="Running", containerStatuses=[container(running={})])) is None
    ending = beside({"terminated": {"exitCode": 0}})
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert pod_problem(ending) is None
    without_engine = pod_problem(beside({"waiting": {"reason": "CrashLoopBackOff"}}, engine={"waiting": {}}))
    assert without_engine is not None
    assert not without_engine.is_harmless


def condition(kind: str, status: str, reason: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason}


@pytest.mark.parametrize(
    ("is_deleted", "conditions", "lost"),
    [
        (True, [condition("DisruptionTarget", "True", "DeletionByTaintManager")], True),
        (True, [condition("DisruptionTarget", "True", "EvictionByEvictionAPI")], False),
        (True, [condition("DisruptionTarget", "False", "DeletionByTaintManager")], False),
        (True, [condition("Ready", "False"), condition("ContainersReady", "True")], True),
        (False, [condition("Ready", "False"), condition("ContainersReady", "True")], False),
        (True, [condition("Ready", "False"), condition("ContainersReady", "False")], False),
        (True, [condition("Ready", "True"), condition("ContainersReady", "True")], False),
        (True, [], False),
    ],
)
def test_whether_a_pod_goes_because_its_node_is_lost(is_deleted: bool, conditions: list[dict[str, str]], lost: bool) -> None:
    pod = a_pod(phase="Running", conditions=conditions)
    if is_deleted:
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert is_node_lost(pod) is lost
