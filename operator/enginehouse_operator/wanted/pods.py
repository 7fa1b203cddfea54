"""The pod of a member: launcher container `engine`, native sidecar `monitor`, and what the two share.

Invariants: rendered once, from the replica's copy; passes the `restricted` Pod Security Standard; the engine container holds no
API token; the kubelet never restarts the engine (`restartPolicy: Never`), only the monitor; only the leader serves HTTP.
Does not create anything.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from enginehouse_operator import names
from enginehouse_operator.api import EngineCopy, KeyRef, revision
from enginehouse_operator.spec_rules import ClaimModel, HubModel, model_source

from .arguments import API_KEY_DIR, CACHE_DIR, MODEL_DIR, SOCKET_DIR, TLS_DIR, arguments, holds_api_key, holds_certificate
from .metadata import Owner, metadata
from .ray_token import needs_token, token_mount, token_volume
from .shared_memory import MIB, member_shared_memory_bytes
from .template import merge

TOKEN_DIR: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
USER_ID: Final = 10001
SETTLE_SECONDS: Final = 5
"""Endpoints settle for so long while the leader goes on accepting."""
STOP_MARGIN_SECONDS: Final = 35
"""After the drain, before the kubelet kills what is left: 5 s for the last answers to arrive, 10 s for the leader to stop its
processes, then 10 s for the other members, which wait for it, and 10 s to kill, to reap and to tell."""
TOKEN_SECONDS: Final = 3600
LOST_NODE_SECONDS: Final = {"node.kubernetes.io/unreachable": 10, "node.kubernetes.io/not-ready": 30}
"""How long a pod is kept on a node that is lost, from the taint on; the API server's default is 300.

A node that says nothing is tainted after 50 s (40 before Kubernetes 1.32): ten more are one heartbeat of a node that comes back,
and make it a minute. One whose kubelet says that it is not ready is tainted at once: restarts of a kubelet or of a container
runtime take less than half a minute, and the engine lives on meanwhile.
"""


class PodSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's settings that pods are made from."""

    engine_image: str
    """Where an engine names none."""
    monitor_image: str
    pull_policy: str
    log_format: str = "text"


def pod(owner: Owner, copy: EngineCopy, *, name: str, ordinal: int, settings: PodSettings) -> dict[str, Any]:
    """``owner`` is the replica. Raises InvalidSpec for a template that is refused."""
    role = names.LEADER if ordinal == 0 else names.WORKER
    labels = {
        "app.kubernetes.io/component": role,
        names.LABEL_REPLICA: owner.name,
        names.LABEL_ROLE: role,
        names.LABEL_ORDINAL: str(ordinal),
        names.LABEL_REVISION: revision(copy),
    }
    if role == names.LEADER:
        labels[names.LABEL_SERVING] = "true"
    volumes, mounts = _volumes(copy, ordinal=ordinal)
    if needs_token(copy):
        volumes.append(token_volume(owner))
        mounts.append(token_mount())
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(
            owner, name, labels=labels, annotations={"kubectl.kubernetes.io/default-container": names.ENGINE_CONTAINER}
        ),
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": owner.name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "hostname": name,
            "subdomain": names.members_service_name(owner.engine),
            "terminationGracePeriodSeconds": copy.drain.timeout_seconds + SETTLE_SECONDS + STOP_MARGIN_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [_monitor(owner, name, settings, leads=copy.is_elastic and ordinal == 0)],
            "containers": [_engine(owner, copy, ordinal, mounts, settings)],
            "volumes": volumes,
        },
    }
    merged = merge(manifest, copy.template)
    merged["spec"]["tolerations"] = _tolerations(merged["spec"].get("tolerations", []))
    return merged


def _tolerations(given: Any) -> Any:
    """The template's, and ours of the taints that it does not name, as the API server would add its own."""
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        return given  # the API server says what is wrong with it
    named = {str(entry.get("key") or "") for entry in given if entry.get("effect") in (None, "", "NoExecute")}
    ours = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
        for key, seconds in LOST_NODE_SECONDS.items()
        if not named & {key, ""}
    ]
    return [*given, *ours]


_RESTRICTED: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _engine(owner: Owner, copy: EngineCopy, ordinal: int, mounts: list[dict[str, Any]], settings: PodSettings) -> dict[str, Any]:
    # A user id that no passwd file knows has / as its home, which is read-only here.
    environment: list[dict[str, Any]] = [{"name": "HOME", "value": "/tmp"}]
    if copy.model is not None and copy.model.token_secret_ref is not None:
        environment.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": _key(copy.model.token_secret_ref)}})
    container: dict[str, Any] = {
        "name": names.ENGINE_CONTAINER,
        "image": copy.image or settings.engine_image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python", "-m", "enginehouse_engine"],
        "args": [*arguments(owner, copy, ordinal=ordinal), *_log_flags(settings)],
        "env": environment,
        "securityContext": _RESTRICTED,
        "volumeMounts": mounts,
    }
    if ports := _ports(copy, ordinal):
        container["ports"] = ports
    if ordinal == 0:
        container["readinessProbe"] = _readiness(copy.scheme.upper())
    resources = msgspec.to_builtins(copy.resources)
    if resources:
        container["resources"] = resources
    return container


def _log_flags(settings: PodSettings) -> list[str]:
    """Absent where it is text: an engine's own image may be older than the flag."""
    return [] if settings.log_format == "text" else [f"--log-format={settings.log_format}"]


def _readiness(scheme: str) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/ready", "port": names.HTTP_PORT_NAME, "scheme": scheme},
        "periodSeconds": 1,
        "timeoutSeconds": 2,
        "failureThreshold": 2,
    }


def _ports(copy: EngineCopy, ordinal: int) -> list[dict[str, Any]]:
    ports = {names.HTTP_PORT_NAME: names.HTTP_PORT} if ordinal == 0 else {}
    if ordinal == 0 and (copy.members > 1 or copy.is_elastic):
        ports[names.MEMBERS_PORT_NAME] = names.MEMBERS_PORT
    if copy.executor == "Ray":
        ports |= ({names.RAY_HEAD_PORT_NAME: names.RAY_HEAD_PORT} if ordinal == 0 else {}) | names.RAY_NODE_PORTS
    return [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in ports.items()]


def _monitor(owner: Owner, name: str, settings: PodSettings, *, leads: bool) -> dict[str, Any]:
    return {
        "name": names.MONITOR_CONTAINER,
        "image": settings.monitor_image,
        "imagePullPolicy": settings.pull_policy,
        "restartPolicy": "Always",  # makes it a native sidecar: it starts before the engine and ends after it
        "command": ["python", "-m", "enginehouse_operator.monitor"],
        "args": [
            f"--socket={SOCKET_DIR}/monitor.sock",
            f"--namespace={owner.namespace}",
            f"--replica={owner.name}",
            f"--replica-uid={owner.uid}",
            f"--member={name}",
            *(["--leads"] if leads else []),
            *_log_flags(settings),
        ],
        "env": [
            {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "96Mi"}},
        "securityContext": _RESTRICTED,
        "volumeMounts": [
            {"name": "sockets", "mountPath": SOCKET_DIR},
            {"name": names.MONITOR_TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": True},
        ],
    }


def _volumes(copy: EngineCopy, *, ordinal: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pod's volumes, and the engine container's mounts."""
    token = {
        "defaultMode": 0o440,
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ],
    }
    shared_mib = -(-member_shared_memory_bytes(copy, ordinal=ordinal) // MIB)
    volumes: list[dict[str, Any]] = [
        {"name": "sockets", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_mib}Mi"}},
        {"name": "scratch", "emptyDir": {}},
        {"name": names.MONITOR_TOKEN_VOLUME, "projected": token},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "sockets", "mountPath": SOCKET_DIR},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "scratch", "mountPath": "/tmp"},
    ]
    source = None if copy.model is None else model_source(copy.model.uri)
    if isinstance(source, ClaimModel):
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": source.claim, "readOnly": True}})
        mounts.append({"name": "model", "mountPath": MODEL_DIR, "readOnly": True})
    if copy.model is not None and isinstance(source, HubModel):
        cache = copy.model.cache
        where = {"emptyDir": {}} if cache is None else {"persistentVolumeClaim": {"claimName": cache.claim_name}}
        volumes.append({"name": "model-cache", **where})
        mounts.append({"name": "model-cache", "mountPath": CACHE_DIR})
    if copy.auth is not None and holds_api_key(copy, ordinal):
        key = copy.auth.api_key_secret_ref
        secret = {"secretName": key.name, "items": [{"key": key.key, "path": "api-key"}], "defaultMode": 0o440}
        volumes.append({"name": "api-key", "secret": secret})
        mounts.append({"name": "api-key", "mountPath": API_KEY_DIR, "readOnly": True})
    if copy.tls is not None and holds_certificate(copy, ordinal):
        files = [{"key": file, "path": file} for file in ("tls.crt", "tls.key")]
        volumes.append({"name": "tls", "secret": {"secretName": copy.tls.secret_name, "items": files, "defaultMode": 0o440}})
        mounts.append({"name": "tls", "mountPath": TLS_DIR, "readOnly": True})
    return volumes, mounts


def claims(copy: EngineCopy) -> tuple[str, ...]:
    """Names of the volume claims that a member mounts, those of the template included, each once."""
    named = [volume.get("persistentVolumeClaim") for volume in _volumes(copy, ordinal=0)[0]]
    named += [
        volume.get("persistentVolumeClaim")
        for volume in (copy.template.get("spec") or {}).get("volumes") or ()
        if isinstance(volume, dict)
    ]
    return tuple(dict.fromkeys(str(claim["claimName"]) for claim in named if isinstance(claim, dict) and claim.get("claimName")))


def _key(reference: KeyRef) -> dict[str, str]:
    return {"name": reference.name, "key": reference.key}
