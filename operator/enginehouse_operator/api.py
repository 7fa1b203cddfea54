"""The two kinds as values: specs read through today's schema, with defaults.

Invariant: two specs that mean the same compare equal, whatever was written out and whatever was left to defaults; unknown
fields are ignored, so that an object of a newer version can be read. What the CRD refuses too is checked here again, because
an object may have been stored under another version of the schema.
Does not check what a schema cannot say (``spec_rules.py``), does not read objects' metadata (``observe.py``), writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self, TypeVar

import msgspec

from . import reasons
from .failures import Failure

Executor = Literal["InProcess", "Multiprocess", "Ray", "Simulated"]


class InvalidSpec(Exception):
    """A spec that cannot work: ``reason`` (a constant of ``reasons``), ``message`` (what to do) and ``path`` of the field."""

    def __init__(self, reason: str, message: str, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.reason = reason
        self.message = message
        self.path = path


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A part of a spec: frozen, camelCase, what equals its default is not written."""


class KeyRef(Part, frozen=True, kw_only=True):
    """One key of a secret in the engine's namespace."""

    name: str
    key: str


class ModelCache(Part, frozen=True, kw_only=True):
    claim_name: str


class Model(Part, frozen=True, kw_only=True):
    uri: str
    revision: str | None = None
    served_name: str | None = None
    token_secret_ref: KeyRef | None = None
    cache: ModelCache | None = None


class Parallelism(Part, frozen=True, kw_only=True):
    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    workers_per_member: int | None = None

    @property
    def workers(self) -> int:
        return self.data * self.tensor * self.pipeline

    @property
    def workers_of_rank(self) -> int:
        return self.tensor * self.pipeline

    @property
    def workers_of_member(self) -> int:
        return self.workers if self.workers_per_member is None else self.workers_per_member

    @property
    def members(self) -> int:
        """Pods of a replica."""
        return self.workers // self.workers_of_member

    def ranks_of(self, ordinal: int) -> frozenset[int]:
        """Ranks that cannot go on without this member: those of its workers, and all for the leader, which has the engine cores."""
        if ordinal == 0:
            return frozenset(range(self.data))
        first = ordinal * self.workers_of_member
        return frozenset(worker // self.workers_of_rank for worker in range(first, first + self.workers_of_member))


class Resources(Part, frozen=True, kw_only=True):
    """Of the engine container; quantities as written, numbers as text, so that quotes around one change nothing."""

    limits: dict[str, str | int] = {}
    requests: dict[str, str | int] = {}

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "limits", {name: str(amount) for name, amount in self.limits.items()})
        msgspec.structs.force_setattr(self, "requests", {name: str(amount) for name, amount in self.requests.items()})


class Memory(Part, frozen=True, kw_only=True):
    utilization_percent: int = 90


class Context(Part, frozen=True, kw_only=True):
    """Tokens of prompt and answer together."""

    min_length: int = 1
    max_length: int | None = None


class Startup(Part, frozen=True, kw_only=True):
    timeout_seconds: int = 1800


class Hang(Part, frozen=True, kw_only=True):
    stall_seconds: int = 120


class Drain(Part, frozen=True, kw_only=True):
    timeout_seconds: int = 60


class Auth(Part, frozen=True, kw_only=True):
    api_key_secret_ref: KeyRef


class Tls(Part, frozen=True, kw_only=True):
    secret_name: str


class Ray(Part, frozen=True, kw_only=True):
    placement_strategy: str = "Pack"


class Rollout(Part, frozen=True, kw_only=True):
    max_unavailable: int = 1


class Restart(Part, frozen=True, kw_only=True):
    max_restarts: int = 5
    window_seconds: int = 3600


class Service(Part, frozen=True, kw_only=True):
    type: str = "ClusterIP"
    port: int = 80


class EngineCopy(Part, frozen=True, kw_only=True):
    """What a running replica is made from: ``EngineReplica.spec.engine``. A change of any field replaces the replica; but see
    :attr:`lasting`."""

    model: Model | None = None
    """Absent only with executor Simulated."""
    executor: Executor = "Multiprocess"
    parallelism: Parallelism = Parallelism()
    api_servers: int = 1
    image: str | None = None
    """Absent = the operator's default at the time the pod is made."""
    resources: Resources = Resources()
    memory: Memory = Memory()
    context: Context = Context()
    startup: Startup = Startup()
    hang: Hang = Hang()
    drain: Drain = Drain()
    auth: Auth | None = None
    tls: Tls | None = None
    """Absent = plain HTTP."""
    ray: Ray | None = None
    template: dict[str, Any] = {}
    """A pod overlay; read by ``wanted/template.py``."""

    def __post_init__(self) -> None:
        shape = self.parallelism
        if self.is_elastic and shape.workers_per_member is None:
            # What one pod holds must not depend on how many ranks there are: each has pods of its own.
            shape = msgspec.structs.replace(shape, workers_per_member=shape.workers_of_rank)
            msgspec.structs.force_setattr(self, "parallelism", shape)
        # msgspec leaves out a part that is its default, not one that only equals it: then a default that a newer schema writes out
        # would be another revision.
        for name, default in zip(reversed(self.__struct_fields__), reversed(self.__struct_defaults__), strict=False):
            if isinstance(default, Part) and getattr(self, name) == default:
                msgspec.structs.force_setattr(self, name, default)

    @property
    def members(self) -> int:
        return self.parallelism.members

    @property
    def scheme(self) -> str:
        """Of the OpenAI API's URL."""
        return "http" if self.tls is None else "https"

    @property
    def is_elastic(self) -> bool:
        """Whether ranks come and go while others serve."""
        return self.executor == "Ray"

    @property
    def lasting(self) -> Self:
        """Without what may change while a replica lives: what two copies are compared by, and a replica stores."""
        return self.with_data(1) if self.is_elastic else self

    def with_data(self, data: int) -> Self:
        """The same with so many ranks."""
        return msgspec.structs.replace(self, parallelism=msgspec.structs.replace(self.parallelism, data=data))


class EngineSpec(EngineCopy, frozen=True, kw_only=True):
    """``InferenceEngine.spec``: the copy, and what does not concern a running replica."""

    replicas: int = 1
    suspend: bool = False
    rollout: Rollout = Rollout()
    restart: Restart = Restart()
    service: Service = Service()

    @property
    def desired_replicas(self) -> int:
        return 0 if self.suspend else self.replicas

    def copy(self) -> EngineCopy:
        """The part that a replica carries."""
        return EngineCopy(**{name: getattr(self, name) for name in EngineCopy.__struct_fields__})


class End(Part, frozen=True, kw_only=True):
    """An ending: written once, never revoked."""

    reason: str
    deadline: datetime
    failure: Failure | None = None
    """What the replica died of, or how a member was removed; absent for endings the operator planned."""


class ReplicaSpec(Part, frozen=True, kw_only=True):
    index: int
    epoch: int
    engine: dict[str, Any]
    """As stored; read by :func:`parse_copy`."""
    data: int | None = None
    """Ranks that the replica shall have now, where they come and go; the copy has none then."""
    failures: tuple[Failure, ...] = ()
    end: End | None = None


def revision(copy: EngineCopy) -> str:
    """A hash for labels and dashboards: ten hexadecimal digits. Decisions compare copies, not hashes."""
    return hashlib.sha256(msgspec.json.encode(copy.lasting, order="deterministic")).hexdigest()[:10]


def parse_copy(stored: Mapping[str, Any], *, data: int | None = None) -> EngineCopy:
    """Read ``EngineReplica.spec.engine``, with the number of ranks of now where it may change. Raises InvalidSpec."""
    copy = convert(stored, EngineCopy)
    return copy.with_data(data) if copy.is_elastic and data is not None else copy


def parse_replica(spec: Mapping[str, Any]) -> ReplicaSpec:
    """Read ``EngineReplica.spec``. Raises InvalidSpec."""
    return convert(spec, ReplicaSpec)


_T = TypeVar("_T", bound=msgspec.Struct)


def convert(value: Mapping[str, Any], kind: type[_T]) -> _T:
    """A spec as a value of that kind. Raises InvalidSpec, with the first thing that does not fit the schema."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        where = "spec" + path.strip("`").removeprefix("$")
        raise InvalidSpec(reasons.INVALID_SPEC, message, where) from error
