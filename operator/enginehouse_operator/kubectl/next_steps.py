"""What a person does next, for every reason that keeps an engine from being Ready, and for what its processes died of.

Invariant: the one place that says so. Every reason that ``Ready`` or ``Stalled`` may carry has a next step, and so has every class
of failures (a test compares); ``docs/kubectl-plugin.md`` is compared with it.
Does not decide which reason holds (``why.py``).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Final

import msgspec

from enginehouse_operator import names, reasons
from enginehouse_operator.failures import LOST, NODE_LOST, REMOVED, UNKNOWN

NOT_OBSERVED: Final = "NotObserved"
"""No word of the operator about the present spec. The plugin's own: whoever is silent cannot say it."""
DELETING: Final = "Deleting"
"""The plugin's own, too: an engine that is being deleted gets no conditions any more."""


class NextStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Words, and the command that begins with it. The command is a template: ``ENGINE`` and ``NAMESPACE`` are filled in, and which
    cluster is added."""

    words: str
    command: str = ""

    def of(self, engine: str, *, namespace: str, cluster_options: Iterable[str]) -> NextStep:
        """For this engine."""
        filled = self.command.replace("ENGINE", engine).replace("NAMESPACE", namespace)
        return NextStep(words=self.words, command=on_cluster(filled, cluster_options) if filled else "")


def on_cluster(command: str, cluster_options: Iterable[str]) -> str:
    """To be copied by whoever named a cluster: the present context may be another one, with an engine of the same name."""
    return " ".join([command, *map(shlex.quote, cluster_options)])


def _step(words: str, command: str = "") -> NextStep:
    return NextStep(words=words, command=command)


_STATUS: Final = "kubectl enginehouse status ENGINE -n NAMESPACE"
_LOGS: Final = "kubectl enginehouse logs ENGINE -n NAMESPACE"
_EDIT: Final = "kubectl edit ie ENGINE -n NAMESPACE"
_PODS: Final = f"kubectl describe pods -l {names.LABEL_ENGINE}=ENGINE -n NAMESPACE"
_RESUME: Final = (
    f"kubectl annotate --overwrite ie ENGINE -n NAMESPACE {names.ANNOTATION_RESUME_AFTER}=$(date -u +%Y-%m-%dT%H:%M:%SZ)"
)

NEXT_STEPS: Final = {
    # Said by the plugin itself
    NOT_OBSERVED: _step(
        "See that an operator runs and watches this namespace; what serves, serves on without it.",
        "kubectl get pods -A -l app.kubernetes.io/part-of=enginehouse,app.kubernetes.io/component=operator",
    ),
    DELETING: _step("Wait until its pods have drained; apply it again if it is wanted."),
    # On the way
    reasons.STARTING: _step("Wait; the message says for what. spec.startup.timeoutSeconds bounds it.", _STATUS),
    reasons.ROLLING_OUT: _step("Wait; spec.rollout.maxUnavailable says how many replicas are replaced at once.", _STATUS),
    reasons.SCALING: _step("Wait; replicas or ranks are being added or ended.", _STATUS),
    reasons.ENDING: _step("Wait; the replica drains, for spec.drain.timeoutSeconds at most."),
    reasons.RANK_RESTARTING: _step("Wait; the rank comes back in its pod, and the others serve on.", _STATUS),
    reasons.API_SERVER_RESTARTING: _step("Wait; the API server comes back in its pod, and the others serve on.", _STATUS),
    reasons.RESTART_DELAYED: _step("Wait for the successor, and see what the last one died of.", _LOGS),
    reasons.PLACEMENT_PENDING: _step("Wait until the pods have joined the replica's Ray cluster.", _STATUS),
    # The spec cannot work
    reasons.INVALID_SPEC: _step("Correct the field that the message names.", _EDIT),
    reasons.UNKNOWN_MODEL_SCHEME: _step("Let spec.model.uri begin with hf://, pvc:// or file:///.", _EDIT),
    reasons.IMPOSSIBLE_PARALLELISM: _step("Change spec.parallelism or spec.executor as the message says.", _EDIT),
    reasons.TEMPLATE_INVALID: _step("Take the key out of spec.template, or use what the message names instead.", _EDIT),
    reasons.POD_REJECTED: _step("Correct spec.template or spec.resources, or the admission policy that refuses the pod.", _EDIT),
    reasons.OBJECT_REJECTED: _step("Correct the field that the message names, or the admission policy that refuses it.", _EDIT),
    # The world lacks something
    reasons.QUOTA_EXCEEDED: _step(
        "Raise the quota, or lower spec.resources or spec.replicas; it goes on by itself then.",
        "kubectl describe resourcequota -n NAMESPACE",
    ),
    reasons.FORBIDDEN: _step(
        "Let the admission policy or webhook that the message names allow it, or give the operator the right that is missing; "
        "it goes on by itself then.",
        "kubectl get validatingadmissionpolicies,validatingwebhookconfigurations,mutatingwebhookconfigurations",
    ),
    reasons.NAME_TAKEN: _step("Delete the object that has the name, or give the engine another one."),
    reasons.CLAIM_NOT_FOUND: _step(
        "Create the claim, or correct spec.model; it goes on by itself then.", "kubectl get persistentvolumeclaims -n NAMESPACE"
    ),
    reasons.SECRET_NOT_FOUND: _step(
        "Create the secret with that key, or correct its name in the spec.", "kubectl get secrets -n NAMESPACE"
    ),
    reasons.IMAGE_NOT_AVAILABLE: _step(
        "Correct the image's name and tag (spec.image, or the operator's), or give the pods a pull secret.", _PODS
    ),
    reasons.CONTAINER_NOT_CREATED: _step("Read what the node's kubelet says, and give the container what it asks for.", _PODS),
    reasons.UNSCHEDULABLE: _step(
        "Add nodes, free what the scheduler misses, or ask for less in spec.resources.", "kubectl describe nodes"
    ),
    reasons.PLACEMENT_LACKING: _step(
        "Let the pods have what the bundle needs (spec.resources), or ask for fewer ranks or workers (spec.parallelism).", _EDIT
    ),
    reasons.MEMBER_REPLACED: _step("See why the pod ended, if it happens again.", _LOGS),
    reasons.MONITOR_DOWN: _step("Read why the monitor ended; the kubelet starts it again.", _PODS),
    # Stopped until a person acts
    reasons.RESTART_BUDGET_SPENT: _step("Remove the cause of the failures, then say so, or change the spec:", _RESUME),
    reasons.INVALID_CONFIG: _step("Correct what the engine refused; the message names it.", _EDIT),
    reasons.MODEL_NOT_FOUND: _step("Correct spec.model.uri, or put the model where it points.", _EDIT),
    reasons.CONTEXT_TOO_SMALL: _step(
        "Give the engine more memory (spec.resources, memory.utilizationPercent), or lower spec.context.minLength.", _EDIT
    ),
    # A part of a replica is gone for good
    reasons.RANK_DEAD: _step("Wait; the replica serves on without the rank and ends when its successor may come.", _STATUS),
    reasons.API_SERVER_DEAD: _step("Wait; the other API servers serve on until the replica's successor may come.", _STATUS),
    # What a process died of
    "Signal": _step("Read its last lines; a signal that nobody sent is a crash.", _LOGS),
    "OutOfMemory": _step("Raise resources.limits.memory, or lower memory.utilizationPercent.", _EDIT),
    "ExitCode": _step("Read its last lines.", _LOGS),
    "Exception": _step("Read the message and the last lines.", _LOGS),
    "Hang": _step("See in the stacks where it stood; if one step may rightly take so long, raise spec.hang.stallSeconds.", _LOGS),
    "DeviceError": _step("Look at the node's device if it returns: its driver's log says more."),
    "StartupTimeout": _step("See what it waited for, or raise spec.startup.timeoutSeconds.", _LOGS),
    "Evicted": _step("Look at the node's pressure; requests that equal the limits are evicted last.", "kubectl describe nodes"),
    NODE_LOST: _step("Nothing, the successor starts on another node; bring the node back, or delete it.", "kubectl get nodes"),
    LOST: _step("Nothing, a successor comes by itself; see whether the pod's node lives.", "kubectl get nodes"),
    REMOVED: _step("Nothing, a successor comes by itself."),
    UNKNOWN: _step("Read the last lines of the pod, and the Events of its node.", _LOGS),
}
"""By reason, or class of failures: the two that share a name mean the same."""

OTHERWISE: Final = _step("Read what the object and its Events say.", "kubectl describe ie ENGINE -n NAMESPACE")
"""For reasons of a newer operator."""
POD_EVENT: Final = _step("Give the pod what its node asks for; it goes on by itself then.", _PODS)
"""For reasons of the kubelet, which are not ours."""


def next_step(reason: str) -> NextStep:
    return NEXT_STEPS.get(reason, OTHERWISE)
