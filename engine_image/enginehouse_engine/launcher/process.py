"""Who a process of the engine is.

Invariant: the identity, never the pid, tells processes apart; inside one launcher's life it is unique.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

API_SERVER: Final = "api-server"
ENGINE_CORE: Final = "engine-core"
WORKER: Final = "worker"
MODEL_FETCH: Final = "model-fetch"
"""Downloads the model and exits 0: the only process that is neither registered nor expected to stay."""


@dataclass(frozen=True)
class Process:
    """``rank`` is None for what belongs to no rank; ``index`` tells processes of one role and rank apart: a worker's is
    pipeline position x tensor parallel size + tensor position.
    """

    role: str
    rank: int | None
    index: int
    incarnation: int

    def __str__(self) -> str:
        if self.role == ENGINE_CORE:
            return f"engine core of rank {self.rank}"
        if self.role == WORKER:
            return f"worker {self.index} of rank {self.rank}"
        if self.role == API_SERVER:
            return f"API server {self.index}"
        return self.role.replace("-", " ")


def processes(*, api_servers: int, ranks: int, workers: int = 0) -> tuple[Process, ...]:
    """The processes that one engine consists of, API servers first; ``workers`` are each rank's own."""
    front = tuple(Process(role=API_SERVER, rank=None, index=index, incarnation=1) for index in range(api_servers))
    return front + tuple(process for rank in range(ranks) for process in rank_processes(rank, workers=workers, incarnation=1))


def rank_processes(rank: int, *, workers: int, incarnation: int) -> tuple[Process, ...]:
    """One incarnation of a rank: its engine core and its workers."""
    core = Process(role=ENGINE_CORE, rank=rank, index=0, incarnation=incarnation)
    return (core, *(Process(role=WORKER, rank=rank, index=index, incarnation=incarnation) for index in range(workers)))
