"""The pod overlay of ``spec.template``: which keys are merged, how, and why the others are refused.

Invariant: what Enginehouse relies on (containers, command, identity, sockets, process namespace, restart policy) cannot be changed
by an overlay; a key that is not in the table is refused with the place to say it, never ignored.
Table for users: ``docs/reference/template.md``. What a merged key holds is checked by the API server when the pod is made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Final

from enginehouse_operator import names, reasons
from enginehouse_operator.api import InvalidSpec

SET: Final = "taken over"
ADD_KEYS: Final = "keys added"
APPEND: Final = "entries appended"

METADATA: Final = {"labels": ADD_KEYS, "annotations": ADD_KEYS}
POD: Final = {
    "nodeSelector": SET,
    "affinity": SET,
    "tolerations": SET,
    "topologySpreadConstraints": SET,
    "priorityClassName": SET,
    "runtimeClassName": SET,
    "schedulerName": SET,
    "schedulingGates": SET,
    "imagePullSecrets": SET,
    "dnsPolicy": SET,
    "dnsConfig": SET,
    "hostAliases": SET,
    "resourceClaims": SET,
    "securityContext": ADD_KEYS,
    "volumes": APPEND,
}
ENGINE: Final = {"args": APPEND, "env": APPEND, "envFrom": APPEND, "volumeMounts": APPEND, "imagePullPolicy": SET}

REFUSED: Final = {
    "spec.shareProcessNamespace": "the launcher has to be PID 1 of its container",
    "spec.hostPID": "the launcher has to be PID 1 of its container",
    "spec.hostNetwork": "several replicas on a node need the same port",
    "spec.hostIPC": "shared memory belongs to one pod",
    "spec.restartPolicy": "a replica lives once; the operator makes its successor",
    "spec.serviceAccountName": "each replica has its own, with the rights of its monitor",
    "spec.automountServiceAccountToken": "the engine container gets no API token",
    "spec.terminationGracePeriodSeconds": "it follows from spec.drain.timeoutSeconds",
    "spec.activeDeadlineSeconds": "an engine runs until it is ended",
    "spec.initContainers": "the monitor is one; prepare files in an image or a volume",
    "spec.hostname": "members are named by the operator",
    "spec.subdomain": "members are named by the operator",
    "spec.nodeName": "use spec.template.spec.nodeSelector or affinity",
    "containers.image": "use spec.image of the engine",
    "containers.resources": "use spec.resources of the engine",
    "containers.command": "use another spec.image",
    "containers.ports": "the engine serves on port 8000",
    "containers.readinessProbe": "the operator relies on its own",
    "containers.livenessProbe": "the launcher notices deaths; spec.hang is for hangs",
    "containers.startupProbe": "use spec.startup.timeoutSeconds",
    "containers.lifecycle": "SIGTERM drains; see spec.drain",
    "containers.securityContext": "restricted pod security holds for every engine",
}
OWNED_LABEL_PREFIXES: Final = (f"{names.GROUP}/", "app.kubernetes.io/")
OWNED_FLAGS: Final = frozenset(
    {
        "--model", "--revision", "--served-model-name", "--executor", "--data-parallel", "--tensor-parallel", "--pipeline-parallel",
        "--api-servers", "--host", "--port", "--memory-utilization-percent", "--max-context-length", "--min-context-length",
        "--startup-timeout-seconds", "--drain-timeout-seconds", "--hang-stall-seconds", "--api-key-file", "--monitor-socket",
        "--tls-certificate-file", "--tls-key-file",
        "--replica-uid", "--model-cache-dir", "--members", "--member", "--workers-per-member", "--leader",
        "--engine-name", "--ray-strategy", "--ray-token-file",
    }
)  # fmt: skip
MOST_LEVELS: Final = 64
"""Of nesting: four times what a pod has. Whoever writes a manifest goes down all of them, one call inside the other."""
_WHERE: Final = "spec.template"


def merge(pod: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """The pod with the overlay. Raises InvalidSpec (TemplateInvalid) for what is refused or of the wrong kind."""
    if _is_deeper(template, MOST_LEVELS):
        raise _refused(_WHERE, f"it is nested deeper than {MOST_LEVELS} levels, which no pod is")
    merged = copy.deepcopy(dict(pod))
    overlay = _mapping(template, _WHERE)
    for key in overlay:
        if key not in ("metadata", "spec"):
            raise _refused(f"{_WHERE}.{key}", "only metadata and spec of a pod are read")
    metadata = _mapping(overlay.get("metadata", {}), f"{_WHERE}.metadata")
    for key in _mapping(metadata.get("labels", {}), f"{_WHERE}.metadata.labels"):
        if key.startswith(OWNED_LABEL_PREFIXES):
            raise _refused(f"{_WHERE}.metadata.labels[{key}]", "the operator sets it")
    _merge(merged["metadata"], metadata, METADATA, f"{_WHERE}.metadata", "metadata")
    spec = dict(_mapping(overlay.get("spec", {}), f"{_WHERE}.spec"))
    containers = spec.pop("containers", [])
    _no_clash(merged["spec"]["volumes"], spec.get("volumes"), "name", f"{_WHERE}.spec.volumes")
    _merge(merged["spec"], spec, POD, f"{_WHERE}.spec", "spec")
    for place, container in enumerate(_list(containers, f"{_WHERE}.spec.containers")):
        _merge_container(merged, container, f"{_WHERE}.spec.containers[{place}]")
    return merged


def _merge_container(pod: dict[str, Any], container: Any, where: str) -> None:
    overlay = dict(_mapping(container, where))
    name = overlay.pop("name", None)
    if name != names.ENGINE_CONTAINER:
        raise _refused(where, f"only the container named {names.ENGINE_CONTAINER!r} can be changed, found {name!r}")
    engine = next(found for found in pod["spec"]["containers"] if found["name"] == names.ENGINE_CONTAINER)
    for argument in _list(overlay.get("args", []), f"{where}.args"):
        if not isinstance(argument, str) or argument.split("=", 1)[0] in OWNED_FLAGS:
            raise _refused(f"{where}.args", f"{argument!r} is set by the operator, from the fields of the engine's spec")
        if "$(" in argument.split("=", 1)[0]:
            raise _refused(f"{where}.args", f"which flag {argument!r} is depends on a variable: write it out, as in --FLAG=$(NAME)")
    _no_clash(engine["volumeMounts"], overlay.get("volumeMounts"), "mountPath", f"{where}.volumeMounts")
    if any(mount.get("name") == names.MONITOR_TOKEN_VOLUME for mount in overlay.get("volumeMounts") or ()):
        raise _refused(f"{where}.volumeMounts", REFUSED["spec.automountServiceAccountToken"])
    _merge(engine, overlay, ENGINE, where, "containers")


def _merge(target: dict[str, Any], overlay: Mapping[str, Any], table: Mapping[str, str], where: str, prefix: str) -> None:
    for key, value in overlay.items():
        how = table.get(key)
        if how is None:
            raise _refused(f"{where}.{key}", REFUSED.get(f"{prefix}.{key}", "it is not among the keys that are merged"))
        if how == SET:
            target[key] = value
        elif how == ADD_KEYS:
            target[key] = target.get(key, {}) | dict(_mapping(value, f"{where}.{key}"))
        else:
            target[key] = [*target.get(key, []), *_list(value, f"{where}.{key}")]


def _no_clash(ours: list[dict[str, Any]], theirs: Any, key: str, where: str) -> None:
    taken = {str(entry.get(key)).rstrip("/") for entry in ours}
    for entry in _list(theirs if theirs is not None else [], where):
        found = _mapping(entry, where).get(key)
        if isinstance(found, str) and found.rstrip("/") in taken:
            raise _refused(where, f"{key} {found!r} is used by the operator: choose another")


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer if isinstance(outer, (Mapping, list)) for inner in _inside(outer)]
    return any(isinstance(left, (Mapping, list)) for left in layer)


def _inside(outer: Mapping[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, Mapping) else outer


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _refused(where, f"must be an object, found {type(value).__name__}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _refused(where, f"must be a list, found {type(value).__name__}")
    return value


def _refused(where: str, why: str) -> InvalidSpec:
    return InvalidSpec(reasons.TEMPLATE_INVALID, f"refused: {why}", where)
