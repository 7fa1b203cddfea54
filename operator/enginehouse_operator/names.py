"""Every name the operator gives: API group, labels, annotations, and the deterministic names of the things it makes.

Invariant: a child's name is a function of what it stands for, so that making it twice is refused by the API server
(409 AlreadyExists). In those of replicas and members is a UID, so that a recreated engine never meets its predecessor's. Services
and the disruption budget have names that people know, and are made when the old ones are gone.
Does not build objects (``wanted/``).
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

GROUP: Final = "enginehouse.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
ENGINE_KIND: Final = "InferenceEngine"
REPLICA_KIND: Final = "EngineReplica"

FIELD_MANAGER: Final = "enginehouse-operator"

LABEL_ENGINE: Final = f"{GROUP}/engine"
"""Name of the engine: on replicas, members and everything else made for an engine."""
LABEL_REPLICA: Final = f"{GROUP}/replica"
"""Name of the replica: on members, service accounts, roles, bindings and the secret with Ray's token."""
LABEL_REVISION: Final = f"{GROUP}/revision"
"""Hash of the copied spec: on replicas and members, for people and dashboards; decisions compare the copies themselves."""
LABEL_ROLE: Final = f"{GROUP}/role"
"""``leader`` or ``worker``: on members."""
LABEL_ORDINAL: Final = f"{GROUP}/ordinal"
"""Number of the member inside its replica; 0 is the leader."""
LABEL_SERVING: Final = f"{GROUP}/serving"
"""On leaders, ``true`` until their replica ends: the service selects it."""

LEADER: Final = "leader"
WORKER: Final = "worker"

ANNOTATION_RESUME_AFTER: Final = f"{GROUP}/resume-after"
"""Set by people on an engine, RFC 3339: failures up to then are forgiven, and no successor starts before."""
ANNOTATION_WANTED: Final = f"{GROUP}/wanted"
"""Hash of what was last applied: on services, rights and disruption budgets, which an apply puts right. Makes a removed field
visible, which a comparison of the present ones cannot."""

ENGINE_CONTAINER: Final = "engine"
MONITOR_CONTAINER: Final = "monitor"
MONITOR_TOKEN_VOLUME: Final = "monitor-token"
HTTP_PORT: Final = 8000
HTTP_PORT_NAME: Final = "http"
MEMBERS_PORT: Final = 7411
"""Where the leader's launcher listens for those of the other members."""
MEMBERS_PORT_NAME: Final = "members"
RAY_HEAD_PORT: Final = 6379
"""Of the leader's gcs_server, which all members and their actors reach."""
RAY_HEAD_PORT_NAME: Final = "ray-head"
RAY_NODE_PORTS: Final = {"ray-node": 6380, "ray-objects": 6381}
"""Of each member's raylet, by name; its actors have ports 20000 to 20099."""
MOST_MEMBERS: Final = 64
"""Of one replica."""

LEASE: Final = "enginehouse-operator"


def short_hash(*parts: str | int) -> str:
    """Eight lower-case letters and digits, the same for the same parts."""
    digest = hashlib.sha256("\n".join(str(part) for part in parts).encode()).digest()
    return base64.b32encode(digest)[:8].decode().lower()


def replica_name(engine: str, *, engine_uid: str, index: int, epoch: int) -> str:
    """At most 54 characters for an engine name of at most 40."""
    return f"{engine}-{index}-{short_hash(engine_uid, index, epoch)}"


def member_name(replica: str, *, replica_uid: str, ordinal: int) -> str:
    """At most 63 characters: it is also the pod's host name."""
    return f"{replica}-{short_hash(replica_uid, ordinal)}"


def token_secret_name(replica: str, *, replica_uid: str) -> str:
    """At most 63 characters. With the UID: it never meets that of a deleted namesake."""
    return f"{replica}-{short_hash(replica_uid, 'ray-token')}"


def service_name(engine: str) -> str:
    """The service that clients use."""
    return engine


def members_service_name(engine: str) -> str:
    """The headless service that gives members their DNS names."""
    return f"{engine}-members"


def disruption_budget_name(engine: str) -> str:
    """Of all members."""
    return f"{engine}-members"


def member_host(member: str, *, engine: str, namespace: str) -> str:
    """The DNS name of a member inside the cluster, known before the pod is ready."""
    return f"{member}.{members_service_name(engine)}.{namespace}.svc"
