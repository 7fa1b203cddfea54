"""Every reason that conditions, Events, plans and logs carry, with its one-line meaning.

Invariant: a reason is public API: documented in ``docs/reference/conditions.md`` (a test compares), never renamed.
Does not decide anything.
"""

from __future__ import annotations

from typing import Final

# Conditions: everything is as asked for
ALL_REPLICAS_SERVE: Final = "AllReplicasServe"
SUSPENDED: Final = "Suspended"
ZERO_REPLICAS: Final = "ZeroReplicas"
SOME_REPLICAS_SERVE: Final = "SomeReplicasServe"
SETTLED: Final = "Settled"
FITS: Final = "Fits"
SERVING: Final = "Serving"
LIVING: Final = "Living"
PLACED: Final = "Placed"

# Conditions: on the way
STARTING: Final = "Starting"
ROLLING_OUT: Final = "RollingOut"
SCALING: Final = "Scaling"
ENDING: Final = "Ending"
RANK_RESTARTING: Final = "RankRestarting"
API_SERVER_RESTARTING: Final = "ApiServerRestarting"
RESTART_DELAYED: Final = "RestartDelayed"
NO_REPLICA_SERVES: Final = "NoReplicaServes"
NOT_KNOWN: Final = "NotKnown"
PLACEMENT_PENDING: Final = "PlacementPending"

# Problems with the spec: nothing happens until it changes
INVALID_SPEC: Final = "InvalidSpec"
UNKNOWN_MODEL_SCHEME: Final = "UnknownModelScheme"
IMPOSSIBLE_PARALLELISM: Final = "ImpossibleParallelism"
TEMPLATE_INVALID: Final = "TemplateInvalid"

# Problems with the world: tried again
POD_REJECTED: Final = "PodRejected"
OBJECT_REJECTED: Final = "ObjectRejected"
QUOTA_EXCEEDED: Final = "QuotaExceeded"
FORBIDDEN: Final = "Forbidden"
NAME_TAKEN: Final = "NameTaken"
CLAIM_NOT_FOUND: Final = "ClaimNotFound"
SECRET_NOT_FOUND: Final = "SecretNotFound"
IMAGE_NOT_AVAILABLE: Final = "ImageNotAvailable"
CONTAINER_NOT_CREATED: Final = "ContainerNotCreated"
UNSCHEDULABLE: Final = "Unschedulable"
PLACEMENT_LACKING: Final = "PlacementLacking"
MEMBER_REPLACED: Final = "MemberReplaced"
MONITOR_DOWN: Final = "MonitorDown"

# Stops that want a person
RESTART_BUDGET_SPENT: Final = "RestartBudgetSpent"
INVALID_CONFIG: Final = "InvalidConfig"
MODEL_NOT_FOUND: Final = "ModelNotFound"
CONTEXT_TOO_SMALL: Final = "ContextTooSmall"

# Why a replica ends (spec.end.reason) or starts
SCALE_DOWN: Final = "ScaleDown"
ROLLOUT: Final = "Rollout"
SUPERSEDED: Final = "Superseded"
MEMBER_FAILED: Final = "MemberFailed"
MEMBER_LOST: Final = "MemberLost"
RANK_DEAD: Final = "RankDead"
API_SERVER_DEAD: Final = "ApiServerDead"
MEMBER_REMOVED: Final = "MemberRemoved"
SCALE_UP: Final = "ScaleUp"
SUCCESSOR: Final = "Successor"
RANKS_ADDED: Final = "RanksAdded"
RANKS_REMOVED: Final = "RanksRemoved"

# What a step does (Events, logs)
MEMBER_CREATED: Final = "MemberCreated"
MEMBER_STOPPED: Final = "MemberStopped"
LEFT_SERVICE: Final = "LeftService"
SUCCEEDED: Final = "Succeeded"
APPLIED: Final = "Applied"

NORMAL_EVENTS: Final = (
    SCALE_UP, SUCCESSOR, SCALE_DOWN, SUSPENDED, ROLLOUT, SUPERSEDED, RANKS_ADDED, RANKS_REMOVED, PLACED
)  # fmt: skip
"""Reasons of Events of type Normal: what was asked for."""
WARNING_EVENTS: Final = (
    MEMBER_FAILED, MEMBER_LOST, MEMBER_REMOVED, RANK_DEAD, API_SERVER_DEAD, RANK_RESTARTING, API_SERVER_RESTARTING,
    PLACEMENT_LACKING, INVALID_SPEC, UNKNOWN_MODEL_SCHEME, IMPOSSIBLE_PARALLELISM, TEMPLATE_INVALID, POD_REJECTED, OBJECT_REJECTED,
    RESTART_BUDGET_SPENT, INVALID_CONFIG, MODEL_NOT_FOUND, CONTEXT_TOO_SMALL,
)  # fmt: skip
"""Reasons of Events of type Warning: ends that nobody asked for, deaths, shortages, and every reason of Stalled."""

MEANINGS: Final = {
    ALL_REPLICAS_SERVE: "Every replica asked for serves.",
    SUSPENDED: "spec.suspend is true: no replica is wanted, those that lived were drained and ended.",
    ZERO_REPLICAS: "spec.replicas is 0: no replica is wanted.",
    SOME_REPLICAS_SERVE: "At least one replica serves.",
    SETTLED: "Nothing is under way.",
    FITS: "Every replica that serves announced a context length of at least spec.context.minLength.",
    SERVING: "Every rank of the replica serves and its leader answers.",
    LIVING: "The replica was not asked to end.",
    PLACED: "Ray has a place for every worker of every rank.",
    STARTING: "Replicas start; the message says how many, and what is waited for.",
    ROLLING_OUT: "Replicas made from an older spec are being replaced, within spec.rollout.maxUnavailable.",
    SCALING: "Replicas, or with executor Ray their ranks, are being added or ended because their number changed.",
    ENDING: "The replica was asked to end; its members drain.",
    RANK_RESTARTING: "A rank of a replica died and is started again in its pod; the others serve on.",
    API_SERVER_RESTARTING: "An API server of a replica died and is started again in its pod; the others serve on.",
    RESTART_DELAYED: "A replica failed again soon after the last time; its successor starts after a growing delay.",
    NO_REPLICA_SERVES: "No replica serves at the moment.",
    NOT_KNOWN: "No replica has announced its context length, or where Ray has placed its ranks, yet.",
    PLACEMENT_PENDING: "Ray waits for pods that are on their way, or is about to place their workers; nothing is wrong.",
    INVALID_SPEC: "The spec cannot be read; the message names the field.",
    UNKNOWN_MODEL_SCHEME: "spec.model.uri is none of hf://, pvc:// and file://.",
    IMPOSSIBLE_PARALLELISM: "spec.parallelism does not go with the executor, or does not divide.",
    TEMPLATE_INVALID: "spec.template has a key that is refused or of the wrong kind; the message names it and says what to use.",
    POD_REJECTED: "The API server refused the pod (422): usually spec.template or spec.resources; the message has its words.",
    OBJECT_REJECTED: "The API server refused a service, right or replica that the engine needs (422); the message has its words.",
    QUOTA_EXCEEDED: "A ResourceQuota of the namespace refused the pod: raise it or ask for less.",
    FORBIDDEN: "The API server refused a request (403): admission policy, missing right, or a webhook that does not answer.",
    NAME_TAKEN: "A service or other object with the name the engine needs belongs to somebody else: rename one of the two.",
    CLAIM_NOT_FOUND: "A PersistentVolumeClaim that the engine mounts does not exist in its namespace: create it.",
    SECRET_NOT_FOUND: "A secret that the engine refers to, or its key, does not exist in its namespace: create it.",
    IMAGE_NOT_AVAILABLE: "An image cannot be pulled: check its name, its tag, the pull policy and the pull secret.",
    CONTAINER_NOT_CREATED: "The node cannot create a container; the message has the kubelet's words.",
    UNSCHEDULABLE: "No node can take the pod; the message has the scheduler's words.",
    PLACEMENT_LACKING: "Ray has no place for a worker; the message says what which bundle lacks. What serves, serves on.",
    MEMBER_REPLACED: "A pod ended before a rank needed it; nothing ends because of it, and it is made again.",
    MONITOR_DOWN: (
        "The monitor container of a pod does not run; see its log. An engine that serves, serves on, and its deaths show later; "
        "one that does not is not started."
    ),
    RESTART_BUDGET_SPENT: (
        "An index failed more than spec.restart.maxRestarts times inside the window. Change the spec, or set the annotation "
        "enginehouse.dev/resume-after to the present time."
    ),
    INVALID_CONFIG: "The engine refused its configuration; trying again cannot help.",
    MODEL_NOT_FOUND: "The engine did not find the model; trying again cannot help.",
    CONTEXT_TOO_SMALL: "The context length that fits is below spec.context.minLength; trying again cannot help.",
    SCALE_DOWN: "The replica ends because fewer are wanted.",
    ROLLOUT: "The replica ends because the spec it was made from changed.",
    SUPERSEDED: "The replica ends because a later one holds its index.",
    MEMBER_FAILED: "The replica ends because a member died; spec.end.failure says of what.",
    MEMBER_LOST: "The replica ends because a member that had reported is gone, or its node is.",
    RANK_DEAD: (
        "A rank of the replica is dead, the others serve on: the replica ends, with a drain, as soon as its successor may come "
        "and enough others serve."
    ),
    API_SERVER_DEAD: "As RankDead, of an API server.",
    MEMBER_REMOVED: "The replica ends because somebody deleted a member (kubectl delete, eviction, node drain).",
    SCALE_UP: "The replica is new: more are wanted.",
    SUCCESSOR: "The replica takes the index of one that ended.",
    RANKS_ADDED: "A replica was told to have more ranks: it makes the pods for them and serves on.",
    RANKS_REMOVED: "A replica was told to have fewer ranks: the highest drain and go, then their pods and rows.",
    MEMBER_CREATED: "A pod was made.",
    MEMBER_STOPPED: "A pod of an ended replica was deleted: it drains, then stops.",
    LEFT_SERVICE: "The leader of a replica that ends, or of which nothing lives, receives no new connections any more.",
    SUCCEEDED: "An ended replica whose index has a successor was deleted.",
    APPLIED: "A service or right was made or put right again.",
}
