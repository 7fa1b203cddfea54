"""The two kinds as values: specs read through today's schema, with defaults, and refused with a reason when they cannot work.

Invariant: two specs that mean the same compare equal, whatever was written out and whatever was left to defaults; unknown
fields are ignored, so that an object of a newer version can be read. What the CRD refuses too is checked here again, because
an object may have been stored under another version of the schema.
Does not read objects' metadata (``observe.py``) and writes nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar

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


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A part of a spec: frozen, camelCase, what equals its default is not written."""


class KeyRef(_Part, frozen=True, kw_only=True):
    """One key of a secret in the engine's namespace."""

    name: str
    key: str


class ModelCache(_Part, frozen=True, kw_only=True):
    claim_name: str


class Model(_Part, frozen=True, kw_only=True):
    uri: str
    revision: str | None = None
    served_name: str | None = None
    token_secret_ref: KeyRef | None = None
    cache: ModelCache | None = None


class Parallelism(_Part, frozen=True, kw_only=True):
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


class Resources(_Part, frozen=True, kw_only=True):
    """Of the engine container; quantities as written, numbers as text, so that quotes around one change nothing."""

    limits: dict[str, str | int] = {}
    requests: dict[str, str | int] = {}

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "limits", {name: str(amount) for name, amount in self.limits.items()})
        msgspec.structs.force_setattr(self, "requests", {name: str(amount) for name, amount in self.requests.items()})


class Memory(_Part, frozen=True, kw_only=True):
    utilization_percent: int = 90


class Context(_Part, frozen=True, kw_only=True):
    """Tokens of prompt and answer together."""

    min_length: int = 1
    max_length: int | None = None


class Startup(_Part, frozen=True, kw_only=True):
    timeout_seconds: int = 1800


class Hang(_Part, frozen=True, kw_only=True):
    stall_seconds: int = 120


class Drain(_Part, frozen=True, kw_only=True):
    timeout_seconds: int = 60


class Auth(_Part, frozen=True, kw_only=True):
    api_key_secret_ref: KeyRef


class Ray(_Part, frozen=True, kw_only=True):
    placement_strategy: str = "Pack"


class Rollout(_Part, frozen=True, kw_only=True):
    max_unavailable: int = 1


class Restart(_Part, frozen=True, kw_only=True):
    max_restarts: int = 5
    window_seconds: int = 3600


class Service(_Part, frozen=True, kw_only=True):
    type: str = "ClusterIP"
    port: int = 80


class EngineCopy(_Part, frozen=True, kw_only=True):
    """What a running replica is made from: ``EngineReplica.spec.engine``. A change of any field replaces the replica."""

    model: Model | None = None
    """Absent only with executor Simulated."""
    executor: Executor = "InProcess"
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
    ray: Ray | None = None
    template: dict[str, Any] = {}
    """A pod overlay; read by ``wanted/template.py``."""

    @property
    def members(self) -> int:
        return self.parallelism.members


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


class End(_Part, frozen=True, kw_only=True):
    """An ending: written once, never revoked."""

    reason: str
    deadline: datetime
    failure: Failure | None = None
    """What the replica died of, or how a member was removed; absent for endings the operator planned."""


class ReplicaSpec(_Part, frozen=True, kw_only=True):
    index: int
    epoch: int
    engine: dict[str, Any]
    """As stored; read by :func:`parse_copy`."""
    failures: tuple[Failure, ...] = ()
    end: End | None = None


def revision(copy: EngineCopy) -> str:
    """A hash for labels and dashboards: ten hexadecimal digits. Decisions compare copies, not hashes."""
    return hashlib.sha256(msgspec.json.encode(copy, order="deterministic")).hexdigest()[:10]


def parse_engine(spec: Mapping[str, Any]) -> EngineSpec:
    """Read ``InferenceEngine.spec``. Raises InvalidSpec, with the first thing that is wrong."""
    parsed = _convert(spec, EngineSpec)
    if parsed.model is not None:
        _check_model(parsed.model)
    elif parsed.executor != "Simulated":
        raise InvalidSpec(reasons.INVALID_SPEC, "must be given unless executor is Simulated", "spec.model")
    _check_parallelism(parsed)
    context = parsed.context
    if context.max_length is not None and context.min_length > context.max_length:
        raise InvalidSpec(reasons.INVALID_SPEC, "must be at most context.maxLength", "spec.context.minLength")
    return parsed


def parse_copy(stored: Mapping[str, Any]) -> EngineCopy:
    """Read ``EngineReplica.spec.engine``. Raises InvalidSpec."""
    return _convert(stored, EngineCopy)


def parse_replica(spec: Mapping[str, Any]) -> ReplicaSpec:
    """Read ``EngineReplica.spec``. Raises InvalidSpec."""
    return _convert(spec, ReplicaSpec)


_T = TypeVar("_T", bound=msgspec.Struct)


def _convert(value: Mapping[str, Any], kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        where = "spec" + path.strip("`").removeprefix("$")
        raise InvalidSpec(reasons.INVALID_SPEC, message, where) from error


_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_CLAIM_AND_PATH = re.compile(r"(?P<claim>[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(/(?P<path>[^/].*)?)?")


class HubModel(_Part, frozen=True, kw_only=True):
    """``hf://organisation/name``."""

    name: str


class ClaimModel(_Part, frozen=True, kw_only=True):
    """``pvc://claim/path``: a path inside a persistent volume claim; empty = its root."""

    claim: str
    path: str


class FileModel(_Part, frozen=True, kw_only=True):
    """``file:///path``: in the image or in a volume of the template."""

    path: str


def model_source(uri: str) -> HubModel | ClaimModel | FileModel:
    """Where a model comes from. Raises InvalidSpec."""
    where = "spec.model.uri"
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("hf", "pvc", "file"):
        raise InvalidSpec(reasons.UNKNOWN_MODEL_SCHEME, f"must start with hf://, pvc:// or file://, found {uri!r}", where)
    if ".." in rest.split("/"):
        raise InvalidSpec(reasons.INVALID_SPEC, f"must not contain '..' as a part of the path, found {uri!r}", where)
    if scheme == "hf":
        if not _HUB_NAME.fullmatch(rest):
            raise InvalidSpec(reasons.INVALID_SPEC, f"must be hf://organisation/name, found {uri!r}", where)
        return HubModel(name=rest)
    if scheme == "pvc":
        match = _CLAIM_AND_PATH.fullmatch(rest)
        if match is None:
            raise InvalidSpec(reasons.INVALID_SPEC, f"must be pvc://claim/path, found {uri!r}", where)
        return ClaimModel(claim=match["claim"], path=(match["path"] or "").rstrip("/"))
    if not rest.startswith("/"):
        raise InvalidSpec(reasons.INVALID_SPEC, f"must be file:///path with an absolute path, found {uri!r}", where)
    return FileModel(path=rest)


def _check_model(model: Model) -> None:
    source = model_source(model.uri)
    only_hub = {"revision": model.revision, "tokenSecretRef": model.token_secret_ref, "cache": model.cache}
    for name, value in only_hub.items():
        if value is not None and not isinstance(source, HubModel):
            raise InvalidSpec(reasons.INVALID_SPEC, "must be absent unless model.uri starts with hf://", f"spec.model.{name}")


def _check_parallelism(spec: EngineCopy) -> None:
    shape, where = spec.parallelism, "spec.parallelism"
    if min(shape.data, shape.tensor, shape.pipeline) < 1:
        raise InvalidSpec(reasons.IMPOSSIBLE_PARALLELISM, "data, tensor and pipeline must be at least 1", where)
    if spec.executor == "InProcess" and (shape.tensor, shape.pipeline) != (1, 1):
        raise InvalidSpec(
            reasons.IMPOSSIBLE_PARALLELISM,
            f"executor InProcess runs each rank in one process, found tensor {shape.tensor} and pipeline {shape.pipeline}: "
            "set them to 1, or the executor to Multiprocess or Ray",
            where,
        )
    if shape.workers_per_member is not None:
        if shape.workers_per_member < 1 or shape.workers % shape.workers_per_member:
            raise InvalidSpec(
                reasons.IMPOSSIBLE_PARALLELISM,
                f"workersPerMember {shape.workers_per_member} must divide data x tensor x pipeline = {shape.workers}",
                f"{where}.workersPerMember",
            )
        if spec.executor not in ("Ray", "Simulated"):
            raise InvalidSpec(
                reasons.IMPOSSIBLE_PARALLELISM,
                f"workersPerMember must be absent with executor {spec.executor}, which keeps a replica in one pod",
                f"{where}.workersPerMember",
            )
    if spec.executor == "Ray":
        raise InvalidSpec(
            reasons.EXECUTOR_NOT_AVAILABLE,
            "executor Ray comes with a later version of the operator: use InProcess or Multiprocess until then",
            "spec.executor",
        )
