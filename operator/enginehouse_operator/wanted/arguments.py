"""The launcher's flags: what a member's engine container is told, and the paths that both sides of it know.

Invariant: a function of the replica's copy and the member's number alone, the same for all members but for the number and what
only the leader needs. The flags: ``docs/wire-protocol.md`` section 1. Does not mount anything (``pods.py``).
"""

from __future__ import annotations

from typing import Final

from enginehouse_operator import names
from enginehouse_operator.api import EngineCopy, Model, Ray
from enginehouse_operator.spec_rules import ClaimModel, HubModel, model_source

from .metadata import Owner
from .ray_token import TOKEN_DIR, TOKEN_KEY

SOCKET_DIR: Final = "/run/enginehouse"
MODEL_DIR: Final = "/var/lib/enginehouse/model"
CACHE_DIR: Final = "/var/lib/enginehouse/cache"
API_KEY_DIR: Final = "/var/run/secrets/enginehouse/api-key"
TLS_DIR: Final = "/var/run/secrets/enginehouse/tls"


def arguments(owner: Owner, copy: EngineCopy, *, ordinal: int = 0) -> list[str]:
    """The launcher's flags. Those that equal their default are left out."""
    shape = copy.parallelism
    flags: list[tuple[str, str | int | None]] = [
        *_model_flags(copy.model),
        ("--executor", copy.executor),
        ("--data-parallel", shape.data),
        ("--tensor-parallel", shape.tensor),
        ("--pipeline-parallel", shape.pipeline),
        ("--api-servers", copy.api_servers),
        ("--host", "0.0.0.0"),
        ("--port", names.HTTP_PORT),
        ("--memory-utilization-percent", copy.memory.utilization_percent),
        ("--max-context-length", copy.context.max_length),
        ("--min-context-length", copy.context.min_length),
        ("--startup-timeout-seconds", copy.startup.timeout_seconds),
        ("--drain-timeout-seconds", copy.drain.timeout_seconds),
        ("--hang-stall-seconds", copy.hang.stall_seconds),
        ("--api-key-file", f"{API_KEY_DIR}/api-key" if holds_api_key(copy, ordinal) else None),
        ("--tls-certificate-file", f"{TLS_DIR}/tls.crt" if holds_certificate(copy, ordinal) else None),
        ("--tls-key-file", f"{TLS_DIR}/tls.key" if holds_certificate(copy, ordinal) else None),
        ("--monitor-socket", f"{SOCKET_DIR}/monitor.sock"),
        ("--replica-uid", owner.uid),
        *(_member_flags(owner, copy, ordinal) if copy.members > 1 or copy.is_elastic else ()),
        *(_ray_flags(owner, copy) if copy.executor == "Ray" else ()),
    ]
    return [f"{flag}={value}" for flag, value in flags if value is not None]


def _member_flags(owner: Owner, copy: EngineCopy, ordinal: int) -> list[tuple[str, str | int | None]]:
    leader = names.member_name(owner.name, replica_uid=owner.uid, ordinal=0)
    return [
        ("--members", copy.members),
        ("--member", ordinal),
        ("--workers-per-member", copy.parallelism.workers_of_member),
        ("--leader", names.member_host(leader, engine=owner.engine, namespace=owner.namespace)),
    ]


def _ray_flags(owner: Owner, copy: EngineCopy) -> list[tuple[str, str | int | None]]:
    return [
        ("--engine-name", owner.engine),
        ("--ray-strategy", (copy.ray or Ray()).placement_strategy),
        ("--ray-token-file", f"{TOKEN_DIR}/{TOKEN_KEY}"),
    ]


def holds_api_key(copy: EngineCopy, ordinal: int) -> bool:
    """Only the leader has API servers."""
    return copy.auth is not None and ordinal == 0


def holds_certificate(copy: EngineCopy, ordinal: int) -> bool:
    """As above."""
    return copy.tls is not None and ordinal == 0


def _model_flags(model: Model | None) -> list[tuple[str, str | int | None]]:
    if model is None:
        return []
    source = model_source(model.uri)
    uri = f"file://{MODEL_DIR}/{source.path}".rstrip("/") if isinstance(source, ClaimModel) else model.uri
    served = model.served_name
    if served is None and isinstance(source, ClaimModel) and not source.path:
        served = source.claim
    return [
        ("--model", uri),
        ("--revision", model.revision),
        ("--served-model-name", served),
        ("--model-cache-dir", CACHE_DIR if isinstance(source, HubModel) else None),
    ]
