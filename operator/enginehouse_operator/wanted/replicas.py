"""The EngineReplica object of a step.

Invariant: it carries the copy of the spec it was made from; everything in it but ``data`` and ``end`` stays as it is born.
Does not create anything.
"""

from __future__ import annotations

from typing import Any

import msgspec

from enginehouse_operator import names
from enginehouse_operator.api import revision
from enginehouse_operator.steps import CreateReplica

from .metadata import Owner, metadata


def replica(owner: Owner, step: CreateReplica) -> dict[str, Any]:
    """``owner`` is the engine."""
    spec: dict[str, Any] = {"index": step.index, "epoch": step.epoch, "engine": msgspec.to_builtins(step.copy.lasting)}
    if step.copy.is_elastic:
        spec["data"] = step.copy.parallelism.data
    if step.failures:
        spec["failures"] = msgspec.to_builtins(step.failures)
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.REPLICA_KIND,
        "metadata": metadata(owner, step.name, labels={names.LABEL_REVISION: revision(step.copy)}),
        "spec": spec,
    }
