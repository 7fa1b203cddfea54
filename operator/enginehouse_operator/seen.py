"""Seen: what the planners know of the world, as plain frozen values, and what follows from it at once.

Invariant: a row counts only for the pod whose UID it carries; what is over with a member is computed from the replica's shape.
Does not read raw objects (``observe.py``) and does not decide (``endings.py``, ``plan_engine.py``, ``plan_replica.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from . import names
from .api import EngineCopy, ReplicaSpec
from .failures import Failure
from .pod_state import Problem
from .ranks import (
    DEAD,
    FAILED,
    PENDING,
    RESTARTING,
    SERVING,
    ApiServerRow,
    Placement,
    RankRow,
    Row,
    Unit,
    merged,
    restarted_in_place,
)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One pod of a replica."""

    name: str
    uid: str
    created: datetime | None = None
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
    node_is_lost: bool = False
    failure: Failure | None = None
    """Of the container status, when it has ended with a failure."""
    problem: Problem | None = None
    """What is wrong with it, as far as the pod says."""

    @property
    def is_leader(self) -> bool:
        return self.ordinal == 0


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One EngineReplica with its members and rows."""

    name: str
    uid: str
    version: str = ""
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
    def _leader_row(self) -> Row | None:
        """Of the present one."""
        return None if self.leader is None else self.row_of(self.leader)

    @property
    def lost_rows(self) -> tuple[Row, ...]:
        """Rows whose pod is gone, or was replaced by one of the same name."""
        present = {member.name: member.uid for member in self.members}
        return tuple(row for row in self.rows if present.get(row.name) != row.uid)

    @property
    def ranks(self) -> tuple[RankRow, ...]:
        """As the rows of present pods tell, by number; without those that are to go. Nothing of a rank is in a pod that it does
        not need, whatever that says."""
        idle = self.idle_members
        told = merged(filter(None, (self.row_of(member) for member in self.members if member.name not in idle)))
        return told if self.copy is None else tuple(rank for rank in told if rank.rank < self.copy.parallelism.data)

    @property
    def api_servers(self) -> tuple[ApiServerRow, ...]:
        """As the row of the present leader tells, by number."""
        row = self._leader_row
        return () if row is None else tuple(sorted(row.api_servers, key=lambda server: server.index))

    @property
    def placement(self) -> tuple[Placement, ...]:
        """As the row of the present leader tells, by rank."""
        row = self._leader_row
        return () if row is None else tuple(sorted(row.placement, key=lambda group: group.rank))

    @property
    def units(self) -> tuple[Unit, ...]:
        return (*self.ranks, *self.api_servers)

    @property
    def restarted_in_place(self) -> tuple[Failure, ...]:
        """Failures that its launchers answered themselves, each once."""
        told = {
            failure.identity: msgspec.structs.replace(failure, replica=self.name, replica_uid=self.uid, member=row.name)
            for row in self.rows
            for failure in restarted_in_place(row)
        }
        return tuple(told.values())

    @property
    def leader_ranks(self) -> dict[int, str] | None:
        """States of all ranks as the present leader tells them, also of those that are to go. None: it has no row yet."""
        row = self._leader_row
        return None if row is None else {rank.rank: rank.state for rank in row.ranks}

    @property
    def idle_members(self) -> frozenset[str]:
        """Names of members that no rank needs, only where ranks come and go: there are too many now, or their ranks wait to be
        placed. What becomes of their pods and rows harms nobody."""
        if self.copy is None or not self.copy.is_elastic:
            return frozenset()
        known = {member.name for member in self.members} | {row.name for row in self.rows}
        numbers = ordinals(self.name, self.uid)
        return frozenset(name for name in known if self._is_idle(name, numbers.get(name, 0)))

    def _is_idle(self, name: str, ordinal: int) -> bool:
        if self.copy is None or ordinal == 0:
            return False
        if ordinal >= self.copy.members:
            return True
        states = self.leader_ranks or {}
        if not states or any(states.get(rank, PENDING) != PENDING for rank in self.copy.parallelism.ranks_of(ordinal)):
            return False
        # While nothing serves, a replica starts as a whole: what one member cannot do is not made up for by trying again.
        return any(state in (SERVING, RESTARTING) for state in states.values()) or not self._has_failed(name)

    def _has_failed(self, name: str) -> bool:
        failures = [member.failure for member in self.members if member.name == name and member.failure is not None]
        return any(failure.policy.counts for failure in failures) or any(row.name == name and row.failures for row in self.rows)

    @property
    def ranks_of_ended_members(self) -> frozenset[int]:
        """Ranks that had a part in a member that is over: the others can do nothing without it."""
        if self.copy is None:
            return frozenset()
        lost = {row.name for row in self.lost_rows}
        ended = {member.name for member in self.members if member.has_ended}
        failed = {row.name for row in self.rows if row.state == FAILED}
        numbers = ordinals(self.name, self.uid)
        over = [numbers[name] for name in (lost | ended | failed) - self.idle_members if name in numbers]
        return frozenset(rank for ordinal in over for rank in self.copy.parallelism.ranks_of(ordinal))

    @property
    def living_ranks(self) -> frozenset[int]:
        """Ranks that serve, or may yet."""
        if self.copy is None:
            return frozenset()
        dead = {rank.rank for rank in self.ranks if rank.state == DEAD}
        return frozenset(range(self.copy.parallelism.data)) - dead - self.ranks_of_ended_members

    @property
    def is_dead(self) -> bool:
        """Nothing of it answers requests any more, and nothing will: no rank lives, or no API server."""
        if self.copy is None:
            return False
        return not self.living_ranks or sum(server.state == DEAD for server in self.api_servers) >= self.copy.api_servers

    @property
    def is_serving(self) -> bool:
        """Its leader answers its readiness probe: at least one rank serves."""
        leader = self.leader
        if not self.is_live or self.copy is None or leader is None or self.is_dead:
            return False
        return leader.is_ready and leader.deletion_deadline is None and any(rank.state == SERVING for rank in self.ranks)

    @property
    def is_ready(self) -> bool:
        """Every rank and API server serves, no member is leaving, and the leader answers its readiness probe."""
        leaving = {member.name for member in self.members if member.deletion_deadline is not None}
        if not self.is_serving or self.copy is None or leaving - self.idle_members:
            return False
        if any(server.state != SERVING for server in self.api_servers):
            return False
        serving = {rank.rank for rank in self.ranks if rank.state == SERVING}
        return serving == self.living_ranks == set(range(self.copy.parallelism.data))


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of an InferenceEngine that decisions need."""

    name: str
    namespace: str
    uid: str
    generation: int
    is_deleting: bool = False
    resume_after: datetime | None = None
    resume_after_is_bad: bool = False
    status: dict[str, Any] = {}


@functools.lru_cache(maxsize=256)
def ordinals(replica: str, replica_uid: str) -> Mapping[str, int]:
    """The members' numbers by their names: of all that there may ever be."""
    count = range(names.MOST_MEMBERS)
    return {names.member_name(replica, replica_uid=replica_uid, ordinal=ordinal): ordinal for ordinal in count}
