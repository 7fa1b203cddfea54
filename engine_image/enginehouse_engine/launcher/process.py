"""Who a process of the engine is.

Invariant: the identity, never the pid, tells processes apart; inside one launcher's life it is unique.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

API_SERVER: Final = "api-server"
ENGINE_CORE: Final = "engine-core"
WORKER: Final = "worker"
MODEL_FETCH: Final = "model-fetch"
"""Downloads the model and exits 0."""
RAY_START: Final = "ray-start"
"""Brings up this pod's part of the Ray cluster and exits 0; what it has started is adopted."""
ERRANDS: Final = frozenset({MODEL_FETCH, RAY_START})
"""Neither registered nor expected to stay."""
GCS_SERVER: Final = "gcs-server"
"""Ray's control store, in the leader."""
RAYLET: Final = "raylet"
"""Ray's process in each pod: the parent of its actors."""
ACTOR_MANAGER: Final = "actor-manager"
"""Speaks to Ray for the leader's launcher."""


@dataclass(frozen=True)
class Process:
    """``rank`` is None for what belongs to no rank; ``index`` tells processes of one role and rank apart: a worker's is
    pipeline position x tensor parallel size + tensor position.
    """

    role: str
    rank: int | None
    index: int
    incarnation: int
    member: int = field(default=0, compare=False)
    """Number of the pod that it lives in, whose launcher starts and reaps it. No part of its identity."""

    def __str__(self) -> str:
        if self.role == ENGINE_CORE:
            return f"engine core of rank {self.rank}"
        if self.role == WORKER:
            where = f" in member {self.member}" if self.member else ""
            return f"worker {self.index} of rank {self.rank}{where}"
        if self.role == API_SERVER:
            return f"API server {self.index}"
        if self.role in (GCS_SERVER, RAYLET):
            return f"Ray's {self.role.replace('-', '_')}" + (f" in member {self.member}" if self.member else "")
        return self.role.replace("-", " ")
