"""The engine cores that an API server knows: who is let in, what context they share, which one gets the next request.

Invariant: one entry for each rank, its incarnation only grows, and the context limit only falls. Pure: no sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.protocol import PROTOCOL_VERSION, Hello, StepStats


@dataclass
class Rank:
    """A core that said a valid Hello, and what it has to do for this API server."""

    hello: Hello
    identity: bytes
    """Of its socket: ``rank-incarnation``."""
    in_flight: set[str] = field(default_factory=set)
    """Sequences of this API server."""
    stats: StepStats = field(default_factory=StepStats)
    last_chosen: int = 0

    def load(self) -> int:
        """Sequences it has to do. Ours are known at once; those of other API servers only from its last step."""
        return max(len(self.in_flight), self.stats.running + self.stats.waiting)


class Ranks:
    """Those in service, by rank."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._ranks: dict[int, Rank] = {}
        self._newest: dict[int, int] = {}
        self._limit: int | None = None
        self._choices = 0

    def __iter__(self) -> Iterator[Rank]:
        return iter(self._ranks.values())

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def max_context_length(self) -> int | None:
        """Tokens of prompt and answer together that every rank accepts; None before the first."""
        return self._limit

    def missing(self) -> list[int]:
        """Ranks that are not in service."""
        return [rank for rank in range(self._config.parallel.data) if rank not in self._ranks]

    def by_identity(self, identity: bytes) -> Rank | None:
        """The rank in service behind a socket."""
        return next((rank for rank in self._ranks.values() if rank.identity == identity), None)

    def why_refused(self, identity: bytes, hello: Hello) -> str:
        """Why the sender of ``hello`` cannot serve here; empty = it can."""
        config = self._config
        if hello.version != PROTOCOL_VERSION:
            return f"this API server speaks protocol version {PROTOCOL_VERSION}, the core {hello.version}: use one image for both"
        if hello.replica_uid != config.replica_uid:
            return f"this API server belongs to replica {config.replica_uid}, the core to {hello.replica_uid}"
        if hello.config_hash != config.hash():
            return f"the core's configuration {hello.config_hash} is not this API server's {config.hash()}: restart the replica"
        if not 0 <= hello.rank < config.parallel.data:
            return f"rank {hello.rank} is unknown: this replica has ranks 0 to {config.parallel.data - 1}"
        if identity != f"{hello.rank}-{hello.incarnation}".encode():
            return f"the socket's identity {identity!r} does not say rank {hello.rank}, incarnation {hello.incarnation}"
        if min(hello.max_context_length, hello.kv_blocks, hello.block_size, hello.max_batch) < 1:
            return f"context length, KV blocks, block size and batch must be at least 1, found {hello}"
        newest = self._newest.get(hello.rank, -1)
        if hello.incarnation < newest:
            return f"incarnation {hello.incarnation} of rank {hello.rank} is over: incarnation {newest} has taken its place"
        if hello.incarnation == newest:
            return f"incarnation {hello.incarnation} of rank {hello.rank} has said hello before"
        return ""

    def admit(self, identity: bytes, hello: Hello) -> Rank | None:
        """Take a rank into service whose Hello was not refused; the predecessor that it replaces."""
        predecessor = self._ranks.get(hello.rank)
        self._ranks[hello.rank] = Rank(hello, identity)
        self._newest[hello.rank] = hello.incarnation
        self._limit = min(hello.max_context_length, self._limit or hello.max_context_length)
        return predecessor

    def remove(self, rank: Rank) -> None:
        """Out of service."""
        if self._ranks.get(rank.hello.rank) is rank:
            del self._ranks[rank.hello.rank]

    def least_loaded(self) -> Rank | None:
        """Who gets the next sequence; among equals the one that has waited longest for one. None = nobody serves."""
        rank = min(self._ranks.values(), key=lambda rank: (rank.load(), rank.last_chosen), default=None)
        if rank is not None:
            self._choices += 1
            rank.last_chosen = self._choices
        return rank
