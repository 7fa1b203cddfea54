"""What a user's spec must keep to beyond its schema: where a model can come from, and which shapes an executor can have.

Invariant: a spec that cannot work is refused with a reason constant, what to do, and the path of the field. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from . import reasons
from .api import EngineCopy, EngineSpec, InvalidSpec, Model, Part, convert


def parse_engine(spec: Mapping[str, Any]) -> EngineSpec:
    """Read ``InferenceEngine.spec``. Raises InvalidSpec, with the first thing that is wrong."""
    parsed = convert(spec, EngineSpec)
    if parsed.model is not None:
        _check_model(parsed.model)
    elif parsed.executor != "Simulated":
        raise InvalidSpec(reasons.INVALID_SPEC, "must be given unless executor is Simulated", "spec.model")
    _check_parallelism(parsed)
    context = parsed.context
    if context.max_length is not None and context.min_length > context.max_length:
        raise InvalidSpec(reasons.INVALID_SPEC, "must be at most context.maxLength", "spec.context.minLength")
    return parsed


_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_CLAIM_AND_PATH = re.compile(r"(?P<claim>[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(/(?P<path>[^/].*)?)?")


class HubModel(Part, frozen=True, kw_only=True):
    """``hf://organisation/name``."""

    name: str


class ClaimModel(Part, frozen=True, kw_only=True):
    """``pvc://claim/path``: a path inside a persistent volume claim; empty = its root."""

    claim: str
    path: str


class FileModel(Part, frozen=True, kw_only=True):
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
        of_rank, of_member = shape.workers_of_rank, shape.workers_per_member
        if spec.is_elastic and of_rank % of_member and of_member % of_rank:
            raise InvalidSpec(
                reasons.IMPOSSIBLE_PARALLELISM,
                f"workersPerMember {of_member} must divide tensor x pipeline = {of_rank}, or be a "
                "multiple of it, with executor Ray",
                f"{where}.workersPerMember",
            )
    if spec.ray is not None and not spec.is_elastic:
        raise InvalidSpec(reasons.INVALID_SPEC, "must be absent unless executor is Ray", "spec.ray")
