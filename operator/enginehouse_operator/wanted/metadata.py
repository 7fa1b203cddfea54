"""Metadata of everything the operator makes: labels, owner, and the mark of what was applied.

Invariant: every object has its controller as owner, so that it goes when the owner goes, operator or not.
Does not know kinds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from enginehouse_operator import names


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """The controller of an object."""

    kind: str
    name: str
    uid: str
    namespace: str
    engine: str
    """Name of the engine, for the label."""


def metadata(owner: Owner, name: str, *, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Labels that people expect, and ours."""
    found: dict[str, Any] = {
        "name": name,
        "namespace": owner.namespace,
        "labels": {
            "app.kubernetes.io/name": "enginehouse",
            "app.kubernetes.io/instance": owner.engine,
            "app.kubernetes.io/managed-by": names.FIELD_MANAGER,
            names.LABEL_ENGINE: owner.engine,
            **labels,
        },
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": owner.kind,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    if annotations:
        found["annotations"] = dict(annotations)
    return found


def marked(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with a hash of itself as annotation: a field that is no longer wanted changes the hash."""
    digest = hashlib.sha256(msgspec.json.encode(manifest, order="deterministic")).hexdigest()[:16]
    inner = manifest["metadata"]
    annotations = inner.get("annotations", {}) | {names.ANNOTATION_WANTED: digest}
    return manifest | {"metadata": inner | {"annotations": annotations}}


_LIST_MAPS: Final = frozenset({"ports", "ownerReferences"})
"""Lists whose entries have owners of their own: server-side apply leaves those of others."""


def covers(seen: Any, wanted: Any) -> bool:
    """Whether everything wanted is there as wanted. What the server or others added does not matter, where an apply leaves it."""
    if isinstance(wanted, Mapping):
        return isinstance(seen, Mapping) and all(
            key in seen and (_holds if key in _LIST_MAPS else covers)(seen[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, (list, tuple)):
        return isinstance(seen, (list, tuple)) and len(seen) == len(wanted) and all(map(covers, seen, wanted))
    return bool(seen == wanted)


def _holds(seen: Any, wanted: Any) -> bool:
    return isinstance(seen, (list, tuple)) and all(any(covers(found, entry) for found in seen) for entry in wanted)
