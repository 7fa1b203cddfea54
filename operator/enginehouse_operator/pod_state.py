"""What a pod's status says went wrong: why it does not run yet, or what it died of.

Invariant: the same state of the world gives the same words, although the kubelet alternates between two (ErrImagePull and
ImagePullBackOff) and counts attempts in its messages: a message that moves on its own would be a write without news.
Does not read rows (``observe.py``) and does not decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from . import names, reasons
from .failures import NODE_LOST, REMOVED, UNKNOWN, Failure

SIGNAL_BASE: Final = 128
EXIT_CONFIG: Final = 78
"""The launcher's exit code when trying again cannot help."""

_IMAGE_REASONS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"}
)
_NODE_LOST_REASONS: Final = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})
"""Of the condition DisruptionTarget."""
_SHUTDOWN_REASONS: Final = frozenset({"Terminated", "NodeShutdown"})
"""Of a pod that the kubelet ended because its node shuts down in order."""
_CREATE_REASONS: Final = frozenset({"CreateContainerError", "RunContainerError", "ContainerCannotRun", "StartError"})


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that keeps an engine from what was asked: a reason constant, and what to do."""

    reason: str
    message: str
    wants_person: bool = False
    """It will not go away by itself: ``Stalled``."""
    is_harmless: bool = False
    """What serves, serves on."""


def pod_problem(pod: Mapping[str, Any]) -> Problem | None:
    """Why the pod does not run, or None when nothing is known to be wrong."""
    status, name = pod.get("status") or {}, pod["metadata"]["name"]
    if status.get("phase", "Pending") in ("Failed", "Succeeded"):
        return None
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _not_scheduled(name, condition.get("message") or "", condition.get("reason") or "")
    for container in _containers(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        problem = _waiting(name, container, waiting.get("reason") or "", waiting.get("message") or "")
        if problem is not None:
            return problem
    return _monitor_down(name, status) if "deletionTimestamp" not in pod["metadata"] else None


def is_node_lost(pod: Mapping[str, Any]) -> bool:
    """Whether the pod was given up together with its node, or is being deleted while nobody on its node says how it is.

    The kubelet keeps Ready equal to ContainersReady; of a node that is silent, Kubernetes itself takes Ready away.
    """
    found = {condition["type"]: condition for condition in (pod.get("status") or {}).get("conditions") or ()}
    target = found.get("DisruptionTarget") or {}
    if target.get("status") == "True" and target.get("reason") in _NODE_LOST_REASONS:
        return True
    ready, containers = ((found.get(kind) or {}).get("status") for kind in ("Ready", "ContainersReady"))
    return "deletionTimestamp" in pod["metadata"] and ready == "False" and containers == "True"


def pod_failure(pod: Mapping[str, Any]) -> Failure | None:
    """What an ended pod died of, by the launcher's last words, else by the container status. None while it runs or after exit 0."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    if status.get("phase") != "Failed":
        return None
    common = {"member": metadata["name"], "detected_by": "ContainerStatus"}
    for container in _containers(status):
        ended = (container.get("state") or {}).get("terminated")
        if container["name"] == names.ENGINE_CONTAINER and ended and ended.get("exitCode") != 0:
            finished = msgspec.convert(ended["finishedAt"], datetime) if ended.get("finishedAt") else None
            return _ended_container(ended, status, common | {"detected_time": finished})
    for container in _containers(status):
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode") != 0 and container["name"] != names.MONITOR_CONTAINER:
            text = f"container {container['name']} ended: {ended.get('reason') or ''} {ended.get('message') or ''}".strip()
            return Failure(class_="ExitCode", exit_code=ended.get("exitCode"), message=text, role=container["name"], **common)
    if is_node_lost(pod):
        return Failure(class_=NODE_LOST, message="its node is gone", **common)
    return Failure(class_=_class(status) or UNKNOWN, message=status.get("message") or "the pod failed", **common)


def _class(status: Mapping[str, Any]) -> str:
    """Of a pod that the kubelet ended itself, by its own word; empty for others."""
    reason = status.get("reason") or ""
    return REMOVED if reason in _SHUTDOWN_REASONS else reason


def _ended_container(ended: Mapping[str, Any], status: Mapping[str, Any], common: dict[str, Any]) -> Failure:
    code = ended.get("exitCode")
    words = _last_words(ended.get("message") or "")
    if words is not None:
        told = words.exit_code is not None or words.signal is not None
        role = words.role or "launcher"
        return msgspec.structs.replace(words, role=role, exit_code=words.exit_code if told else code, **common)
    common["role"] = "launcher"
    if ended.get("reason") == "OOMKilled":
        return Failure(class_="OutOfMemory", signal=9, message="the container ran out of its memory limit", **common)
    if class_ := _class(status):  # the kubelet ended the whole pod, for instance to free the node
        return Failure(class_=class_, exit_code=code, message=status.get("message") or "", **common)
    if code is not None and code > SIGNAL_BASE:
        return Failure(class_="Signal", signal=code - SIGNAL_BASE, message=ended.get("message") or "", **common)
    class_ = reasons.INVALID_CONFIG if code == EXIT_CONFIG else "ExitCode"
    return Failure(class_=class_, exit_code=code, message=ended.get("message") or "", **common)


def _last_words(text: str) -> Failure | None:
    """What the launcher leaves in /dev/termination-log. Any image may write there: None for what is no record of a failure."""
    try:
        return msgspec.json.decode(text, type=Failure)
    except (msgspec.MsgspecError, RecursionError):  # nesting without end is none of msgspec's own errors
        return None


def _containers(status: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
_SECRET = re.compile(r'secret "([^"]+)" not found')


def _not_scheduled(pod: str, message: str, reason: str) -> Problem | None:
    if reason == "SchedulingGated":
        return Problem(reason=reasons.UNSCHEDULABLE, message=f"pod {pod} is held back by its scheduling gates")
    missing = _CLAIM.search(message)
    if missing:
        return claim_not_found(missing[1])
    return Problem(
        reason=reasons.UNSCHEDULABLE,
        message=f"no node takes pod {pod}: {message}: free resources, add nodes, or ask for less in spec.resources",
    )


def claim_not_found(claim: str) -> Problem:
    """A volume claim that the engine mounts is missing."""
    return Problem(
        reason=reasons.CLAIM_NOT_FOUND,
        message=f"there is no PersistentVolumeClaim {claim!r} in this namespace: create it, or change spec.model",
    )


def _waiting(pod: str, container: Mapping[str, Any], reason: str, message: str) -> Problem | None:
    name, image = container["name"], container.get("image") or "?"
    if reason in _IMAGE_REASONS:
        hint = "it is not on the node and may not be pulled" if reason == "ErrImageNeverPull" else "it cannot be pulled"
        return Problem(
            reason=reasons.IMAGE_NOT_AVAILABLE,
            message=f"image {image} of container {name}: {hint}: check its name and tag, the pull policy and the pull secret",
        )
    if reason == "CreateContainerConfigError":
        missing = _SECRET.search(message)
        wanted = f"there is no secret {missing[1]!r} in this namespace: create it" if missing else message
        reason = reasons.SECRET_NOT_FOUND if "secret" in message.lower() else reasons.CONTAINER_NOT_CREATED
        return Problem(reason=reason, message=f"container {name}: {wanted}")
    if reason in _CREATE_REASONS:
        return Problem(reason=reasons.CONTAINER_NOT_CREATED, message=f"container {name} of pod {pod}: {message or reason}")
    return None


def _monitor_down(pod: str, status: Mapping[str, Any]) -> Problem | None:
    """The monitor does not run. Without it no engine is started; one that runs, runs on."""
    states = {container["name"]: container.get("state") or {} for container in _containers(status)}
    state, runs = states.get(names.MONITOR_CONTAINER) or {}, "running" in (states.get(names.ENGINE_CONTAINER) or {})
    gave_up = (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff"
    if not gave_up and not (runs and state and "running" not in state):
        return None
    words = "its engine serves on, but nobody reports a death in it" if runs else "its engine is not started without it"
    hint = f"the kubelet starts it again; kubectl logs {pod} -c {names.MONITOR_CONTAINER} --previous says why it ended"
    return Problem(reason=reasons.MONITOR_DOWN, message=f"the monitor of pod {pod} does not run: {words}; {hint}", is_harmless=runs)
