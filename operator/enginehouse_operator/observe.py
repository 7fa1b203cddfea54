"""Raw objects to values, read once, field by field.

Invariant: only what it is given; an object counts as an engine's only if its controller reference has the
engine's UID (a replica's: the replica's UID), whatever its labels say. What cannot be read ends no pass.
Does not conclude (``seen.py``) and does not read the API (``kubernetes_client.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from . import names
from .api import InvalidSpec, parse_copy, parse_replica
from .pod_state import is_node_lost, pod_failure, pod_problem
from .ranks import Row
from .seen import Engine, Member, Replica, ordinals

Raw = Mapping[str, Any]


def engine(raw: Raw) -> Engine:
    """Read the metadata; the spec is ``spec_rules.parse_engine``'s."""
    metadata = raw["metadata"]
    resume_after, bad = _resume_after(metadata.get("annotations") or {})
    return Engine(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        is_deleting="deletionTimestamp" in metadata,
        resume_after=resume_after,
        resume_after_is_bad=bad,
        status=raw.get("status") or {},
    )


def owned(objects: Iterable[Raw], owner_uid: str) -> list[Raw]:
    """Those whose controller is the owner."""
    return [
        found
        for found in objects
        if any(
            reference.get("controller") and reference["uid"] == owner_uid
            for reference in found["metadata"].get("ownerReferences", ())
        )
    ]


def replicas(*, engine_uid: str, replica_objects: Iterable[Raw], pods: Iterable[Raw]) -> tuple[Replica, ...]:
    """The engine's replicas with their members, by index and epoch."""
    pods = list(pods)
    seen = []
    for raw in owned(replica_objects, engine_uid):
        uid = raw["metadata"]["uid"]
        seen.append(_replica(raw, owned(pods, uid)))
    return tuple(sorted(filter(None, seen), key=lambda replica: (replica.spec.index, replica.spec.epoch)))


def _replica(raw: Raw, pods: list[Raw]) -> Replica | None:
    metadata, status = raw["metadata"], raw.get("status") or {}
    try:
        spec = parse_replica(raw["spec"])
    except InvalidSpec:
        return None  # not written by any version of this operator: the CRD would have refused it
    try:
        copy = parse_copy(spec.engine, data=spec.data)
    except InvalidSpec:
        copy = None
    numbers = ordinals(metadata["name"], metadata["uid"])
    members = [_member(pod, numbers) for pod in pods]
    return Replica(
        name=metadata["name"],
        uid=metadata["uid"],
        version=metadata.get("resourceVersion", ""),
        generation=metadata.get("generation", 0),
        created=_time(metadata["creationTimestamp"]),
        is_deleting="deletionTimestamp" in metadata,
        spec=spec,
        copy=copy,
        members=tuple(sorted(members, key=lambda member: (not member.is_leader, member.name))),
        rows=_rows(status.get("members") or (), written=_written(metadata)),
        conditions=tuple(status.get("conditions") or ()),
        observed_generation=status.get("observedGeneration") or 0,
    )


def _written(metadata: Raw) -> dict[str, datetime]:
    """When each writer of the status last changed something, by its name: a monitor's is its pod's."""
    fields = metadata.get("managedFields") or ()
    return {entry["manager"]: _time(entry["time"]) for entry in fields if entry.get("subresource") == "status" and "time" in entry}


def _rows(raw: Iterable[Raw], *, written: Mapping[str, datetime]) -> tuple[Row, ...]:
    rows = []
    for entry in raw:
        try:
            row = msgspec.convert(entry, Row)
            rows.append(msgspec.structs.replace(row, written=written.get(row.name)))
        except msgspec.ValidationError:
            # A row of a newer monitor that this version cannot read still says that the member was born.
            rows.append(Row(name=str(entry.get("name", "")), uid=str(entry.get("uid", "")), state="Unreadable"))
    return tuple(rows)


def _member(pod: Raw, numbers: Mapping[str, int]) -> Member:
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    phase = status.get("phase", "Pending")
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in status.get("conditions") or ())
    deletion = metadata.get("deletionTimestamp")
    return Member(
        name=metadata["name"],
        uid=metadata["uid"],
        created=_time(metadata["creationTimestamp"]) if "creationTimestamp" in metadata else None,
        ordinal=numbers.get(metadata["name"], -1),
        deletion_deadline=_time(deletion) if deletion else None,
        has_ended=phase in ("Failed", "Succeeded"),
        succeeded=phase == "Succeeded",
        is_ready=ready,
        is_in_service=labels.get(names.LABEL_SERVING) == "true",
        node_is_lost=is_node_lost(pod),
        failure=pod_failure(pod),
        problem=pod_problem(pod),
    )


def _time(text: str) -> datetime:
    return msgspec.convert(text, datetime).astimezone(UTC)


def _resume_after(annotations: Mapping[str, str]) -> tuple[datetime | None, bool]:
    text = annotations.get(names.ANNOTATION_RESUME_AFTER)
    if text is None:
        return None, False
    try:
        found = msgspec.convert(text, datetime)
        return (found.astimezone(UTC), False) if found.tzinfo is not None else (None, True)
    except (msgspec.ValidationError, OverflowError):  # the first and the last day there is have no UTC everywhere
        return None, True
