"""An engine as a tree: its replicas, their members, and in each its ranks and API servers.

Invariant: pure; what pods and rows say stands beside what the operator's conditions say. A member is shown as long as a pod or a
row of it is there. Does not draw (``tree_text.py``) and does not judge (``why.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from enginehouse_operator import names, observe, reasons
from enginehouse_operator.ranks import ApiServerRow, RankRow, Row
from enginehouse_operator.seen import Member, Replica, ordinals

from .next_steps import NOT_OBSERVED

Raw = Mapping[str, Any]


class _Node(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Fields that are not known are null."""

    name: str
    ready: bool
    state: str
    """One word: a reason, or the state of a row."""
    created: datetime | None


class MemberNode(_Node, frozen=True, kw_only=True):
    """One pod."""

    role: str
    node: str | None
    ranks: tuple[RankRow, ...]
    api_servers: tuple[ApiServerRow, ...]


class ReplicaNode(_Node, frozen=True, kw_only=True):
    index: int
    epoch: int
    end: str | None
    """Why it ends."""
    max_context_length: int | None
    members: tuple[MemberNode, ...]


class EngineNode(_Node, frozen=True, kw_only=True):
    namespace: str
    message: str
    model: str | None
    endpoint: str | None
    max_context_length: int | None
    replicas: tuple[ReplicaNode, ...]


def tree(engine: Raw, *, replicas: Iterable[Raw], pods: Iterable[Raw]) -> EngineNode:
    """``replicas`` and ``pods`` may be those of other engines, too."""
    metadata, spec, status = engine["metadata"], engine["spec"], engine.get("status") or {}
    pods = list(pods)
    seen = observe.replicas(engine_uid=metadata["uid"], replica_objects=replicas, pods=pods)
    nodes = {pod["metadata"]["uid"]: pod["spec"].get("nodeName") for pod in pods}
    ready = _ready(status.get("conditions") or ())
    return EngineNode(
        name=metadata["name"],
        namespace=metadata["namespace"],
        ready=ready.get("status") == "True",
        state=ready.get("reason", NOT_OBSERVED),
        message=ready.get("message", ""),
        created=msgspec.convert(metadata["creationTimestamp"], datetime),
        model=(spec.get("model") or {}).get("uri"),
        endpoint=status.get("endpoint"),
        max_context_length=status.get("maxContextLength"),
        replicas=tuple(_replica(replica, nodes) for replica in seen),
    )


def _ready(conditions: Iterable[Raw]) -> Raw:
    return next((condition for condition in conditions if condition["type"] == "Ready"), {})


def _replica(replica: Replica, nodes: Mapping[str, str | None]) -> ReplicaNode:
    lengths = [rank.max_context_length for rank in replica.ranks if rank.max_context_length is not None]
    end = replica.spec.end
    members = [_member(replica, member, nodes.get(member.uid)) for member in replica.members]
    return ReplicaNode(
        name=replica.name,
        ready=replica.is_ready,
        state=str(_ready(replica.conditions).get("reason", reasons.STARTING)),
        created=replica.created,
        index=replica.spec.index,
        epoch=replica.spec.epoch,
        end=None if end is None else end.reason,
        max_context_length=min(lengths, default=None),
        members=(*members, *(_lost(replica, row) for row in replica.lost_rows)),
    )


def _member(replica: Replica, member: Member, node: str | None) -> MemberNode:
    row = replica.row_of(member)
    return MemberNode(
        name=member.name,
        ready=member.is_ready,
        state=_state(member, row),
        created=member.created,
        role=names.LEADER if member.is_leader else names.WORKER,
        node=node,
        ranks=() if row is None else row.ranks,
        api_servers=() if row is None else row.api_servers,
    )


def _state(member: Member, row: Row | None) -> str:
    """What is wrong with the pod goes before what its monitor said last."""
    if member.problem is not None:
        return member.problem.reason
    if member.has_ended:
        return "Ended" if member.failure is None else "Failed"
    if member.deletion_deadline is not None and (row is None or row.state != "Draining"):
        return "Terminating"
    return "Pending" if row is None else row.state


def _lost(replica: Replica, row: Row) -> MemberNode:
    """A row whose pod is gone."""
    leads = ordinals(replica.name, replica.uid).get(row.name) == 0
    return MemberNode(
        name=row.name,
        ready=False,
        state="Gone",
        created=None,
        role=names.LEADER if leads else names.WORKER,
        node=None,
        ranks=row.ranks,
        api_servers=row.api_servers,
    )
