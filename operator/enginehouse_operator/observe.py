"""Raw objects to Seen: what the planners need to know of the world, as plain frozen values.

Invariant: only what the API said in this pass; an object counts as an engine's only if its controller reference has the
engine's UID (a replica's: the replica's UID), whatever its labels say. A row counts only for the pod whose UID it carries.
Does not decide (``plan_engine.py``, ``plan_replica.py``) and does not read the API (``kubernetes_client.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from . import names
from .api import EngineCopy, InvalidSpec, ReplicaSpec, parse_copy, parse_replica
from .failures import Failure
from .pod_state import Problem, pod_failure, pod_problem
from .ranks import DEAD, FAILED, SERVING, RankRow, Row, merged

Raw = Mapping[str, Any]


class _Seen(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A plain value."""


class Member(_Seen, frozen=True, kw_only=True):
    """One pod of a replica."""

    name: str
    uid: str
    ordinal: int = 0
    """Number in the replica, by its name; 0 = the leader. -1: its name is not one that was given."""
    deletion_deadline: datetime | None = None
    """When the API server kills it, if it is being deleted."""
    has_ended: bool = False
    """All containers are over: phase Failed or Succeeded."""
    succeeded: bool = False
    is_ready: bool = False
    is_in_service: bool = False
    """Carries the label that the service selects."""
    failure: Failure | None = None
    """Of the container status, when it has ended with a failure."""
    problem: Problem | None = None
    """What keeps it from running, as far as the pod says."""

    @property
    def is_leader(self) -> bool:
        return self.ordinal == 0


class Replica(_Seen, frozen=True, kw_only=True):
    """One EngineReplica with its members and rows."""

    name: str
    uid: str
    generation: int
    created: datetime
    is_deleting: bool = False
    spec: ReplicaSpec
    copy: EngineCopy | None
    """None: stored by a version that wrote something this one cannot read. Then it is left alone."""
    members: tuple[Member, ...] = ()
    rows: tuple[Row, ...] = ()
    conditions: tuple[dict[str, Any], ...] = ()
    observed_generation: int = 0

    @property
    def is_live(self) -> bool:
        """Counts in ``replicas``: neither asked to end nor being deleted."""
        return self.spec.end is None and not self.is_deleting

    @property
    def is_gone(self) -> bool:
        """Asked to end, and none of its pods is left."""
        return self.spec.end is not None and not self.members

    @property
    def leader(self) -> Member | None:
        return next((member for member in self.members if member.is_leader), None)

    def row_of(self, member: Member) -> Row | None:
        """The row that this very pod wrote."""
        return next((row for row in self.rows if row.name == member.name and row.uid == member.uid), None)

    @property
    def lost_rows(self) -> tuple[Row, ...]:
        """Rows whose pod is gone, or was replaced by one of the same name."""
        present = {member.name: member.uid for member in self.members}
        return tuple(row for row in self.rows if present.get(row.name) != row.uid)

    @property
    def ranks(self) -> tuple[RankRow, ...]:
        """As the rows of present pods tell, by number."""
        return merged(filter(None, (self.row_of(member) for member in self.members)))

    @property
    def ranks_of_ended_members(self) -> frozenset[int]:
        """Ranks that had a part in a member that is over: the others can do nothing without it."""
        if self.copy is None:
            return frozenset()
        lost = {row.name for row in self.lost_rows}
        ended = {member.name for member in self.members if member.has_ended}
        failed = {row.name for row in self.rows if row.state == FAILED}
        over = [ordinal for name, ordinal in _ordinals(self.name, self.uid, self.copy).items() if name in lost | ended | failed]
        return frozenset(rank for ordinal in over for rank in self.copy.parallelism.ranks_of(ordinal))

    @property
    def living_ranks(self) -> frozenset[int]:
        """Ranks that serve, or may yet."""
        if self.copy is None:
            return frozenset()
        dead = {rank.rank for rank in self.ranks if rank.state == DEAD}
        return frozenset(range(self.copy.parallelism.data)) - dead - self.ranks_of_ended_members

    @property
    def is_serving(self) -> bool:
        """Its leader answers its readiness probe: at least one rank serves."""
        leader = self.leader
        if not self.is_live or self.copy is None or leader is None:
            return False
        return leader.is_ready and leader.deletion_deadline is None and any(rank.state == SERVING for rank in self.ranks)

    @property
    def is_ready(self) -> bool:
        """Every rank serves, no member is leaving, and the leader answers its readiness probe."""
        if not self.is_serving or self.copy is None or any(member.deletion_deadline for member in self.members):
            return False
        serving = {rank.rank for rank in self.ranks if rank.state == SERVING}
        return serving == self.living_ranks == set(range(self.copy.parallelism.data))


class Engine(_Seen, frozen=True, kw_only=True):
    """The metadata of an InferenceEngine that decisions need."""

    name: str
    namespace: str
    uid: str
    generation: int
    is_deleting: bool = False
    resume_after: datetime | None = None
    resume_after_is_bad: bool = False
    status: dict[str, Any] = {}


def _ordinals(replica: str, replica_uid: str, copy: EngineCopy | None) -> dict[str, int]:
    """The members' numbers by their names."""
    count = 1 if copy is None else copy.members
    return {names.member_name(replica, replica_uid=replica_uid, ordinal=ordinal): ordinal for ordinal in range(count)}


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
        copy = parse_copy(spec.engine)
    except InvalidSpec:
        copy = None
    ordinals = _ordinals(metadata["name"], metadata["uid"], copy)
    members = [_member(pod, ordinals) for pod in pods]
    return Replica(
        name=metadata["name"],
        uid=metadata["uid"],
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


def _member(pod: Raw, ordinals: Mapping[str, int]) -> Member:
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    phase = status.get("phase", "Pending")
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in status.get("conditions") or ())
    deletion = metadata.get("deletionTimestamp")
    return Member(
        name=metadata["name"],
        uid=metadata["uid"],
        ordinal=ordinals.get(metadata["name"], -1),
        deletion_deadline=_time(deletion) if deletion else None,
        has_ended=phase in ("Failed", "Succeeded"),
        succeeded=phase == "Succeeded",
        is_ready=ready,
        is_in_service=labels.get(names.LABEL_SERVING) == "true",
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
    except msgspec.ValidationError:
        return None, True
    return (found.astimezone(UTC), False) if found.tzinfo is not None else (None, True)
