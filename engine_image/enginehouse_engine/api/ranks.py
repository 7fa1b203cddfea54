"""The engine cores that an API server knows: who is let in, what context they share, which one gets the next request.

Invariant: one entry for each rank, its incarnation only grows, one that is over never comes back, and the context limit only falls.
Pure: no sockets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from enginehouse_engine.api import balance
from enginehouse_engine.config import EngineConfig
from enginehouse_engine.protocol import PROTOCOL_VERSION, Hello, StepStats

WAITING_BATCHES: Final = 4
"""For each sequence that a rank can run at once so many may wait: who comes last waits for about so many answers."""

_RESTARTING: Final = "Restarting"
_DEAD: Final = "Dead"


class RankState(msgspec.Struct, frozen=True):
    """The launcher's word on a rank."""

    rank: int
    incarnation: int
    state: str

    @property
    def is_awaited(self) -> bool:
        """It serves, or it starts together with the engine."""
        return self.state not in (_RESTARTING, _DEAD)


@dataclass
class Rank:
    """A core that said a valid Hello, and what it has to do."""

    hello: Hello
    identity: bytes
    """Of its socket: ``rank-incarnation``."""
    in_flight: set[str] = field(default_factory=set)
    """Sequences of this API server."""
    stats: StepStats = field(default_factory=StepStats)
    others: int = 0
    """Sequences of other API servers, as of the core's last word."""
    last_chosen: int = 0

    def __post_init__(self) -> None:
        self.sent_blocks = balance.SentBlocks(self.hello.kv_blocks)
        if self.hello.stats is not None:
            self.update(self.hello.stats)

    def update(self, stats: StepStats) -> None:
        """The core's figures. Of what it has, all that is not ours is others'; what it has not taken yet is known better here."""
        self.stats = stats
        self.others = max(0, stats.running + stats.waiting - len(self.in_flight))

    def load(self) -> int:
        """Sequences it has to do."""
        return len(self.in_flight) + self.others

    def is_full(self) -> bool:
        """Whoever comes now would wait for too long."""
        return self.load() >= self.hello.max_batch * (1 + WAITING_BATCHES)


class Ranks:
    """Those in service, by rank."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._hash = config.hash()
        self._ranks: dict[int, Rank] = {}
        self._told: dict[int, RankState] = {}
        self._newest: dict[int, int] = {}
        """The last incarnation that said hello."""
        self._first: dict[int, int] = {}
        """The first incarnation that is not over, as the launcher says."""
        self._limit: int | None = None
        self._choices = 0
        self._hashed: tuple[bytes, list[int]] = (b"", [])

    def __iter__(self) -> Iterator[Rank]:
        return iter(self._ranks.values())

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def max_context_length(self) -> int | None:
        """Tokens of prompt and answer together that every rank accepts; None before the first."""
        return self._limit

    @property
    def are_full(self) -> bool:
        """No rank in service takes more."""
        return bool(self._ranks) and all(rank.is_full() for rank in self._ranks.values())

    def missing(self) -> list[int]:
        """Ranks that are not in service and have not been given up."""
        return [rank for rank in range(self._config.parallel.data) if rank not in self._ranks and self._is_awaited(rank)]

    def outage(self) -> str:
        """What became of those that are not in service."""
        ranks = [rank for rank in range(self._config.parallel.data) if rank not in self._ranks]
        return ", ".join(f"rank {rank} is {self._told[rank].state if rank in self._told else 'gone'}" for rank in ranks)

    def by_identity(self, identity: bytes) -> Rank | None:
        """The rank in service behind a socket."""
        return next((rank for rank in self._ranks.values() if rank.identity == identity), None)

    def told(self, states: Iterable[RankState]) -> list[Rank]:
        """The launcher's whole list; those in service whose incarnation is over."""
        for now in states:
            before = self._told.get(now.rank)
            # A rank's incarnation is called restarting both when it has died and when it is the one that comes.
            has_died = before is not None and before.incarnation == now.incarnation and before.is_awaited and not now.is_awaited
            first = now.incarnation + (has_died or now.state == _DEAD)
            self._first[now.rank] = max(first, self._first.get(now.rank, 0))
            self._told[now.rank] = now
        return [rank for rank in self if rank.hello.incarnation < self._first.get(rank.hello.rank, 0)]

    def is_over(self, identity: bytes) -> bool:
        """Whether the socket is of an incarnation that the launcher has declared over: nobody waits for what it still says."""
        return any(identity == f"{rank}-{first - 1}".encode() for rank, first in self._first.items())

    def why_refused(self, identity: bytes, hello: Hello) -> str:
        """Why the sender of ``hello`` cannot serve here; empty = it can."""
        config = self._config
        if hello.version != PROTOCOL_VERSION:
            return f"this API server speaks protocol version {PROTOCOL_VERSION}, the core {hello.version}: use one image for both"
        if hello.replica_uid != config.replica_uid:
            return f"this API server belongs to replica {config.replica_uid}, the core to {hello.replica_uid}"
        if hello.config_hash != self._hash:
            return f"the core's configuration {hello.config_hash} is not this API server's {self._hash}: restart the replica"
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
        if hello.incarnation < self._first.get(hello.rank, 0):
            return f"incarnation {hello.incarnation} of rank {hello.rank} is over: the launcher says so"
        return ""

    def admit(self, identity: bytes, hello: Hello) -> Rank | None:
        """Take a rank into service whose Hello was not refused; the predecessor that it replaces."""
        predecessor = self._ranks.get(hello.rank)
        self._ranks[hello.rank] = Rank(hello, identity)
        self._newest[hello.rank] = hello.incarnation
        self.lower_limit(hello.max_context_length)
        return predecessor

    def lower_limit(self, tokens: int) -> None:
        """No rank of this replica may be asked for more."""
        self._limit = min(tokens, self._limit or tokens)

    def remove(self, rank: Rank) -> None:
        """Out of service."""
        if self._ranks.get(rank.hello.rank) is rank:
            del self._ranks[rank.hello.rank]

    def choose(self, prompt: bytes) -> Rank | None:
        """Who gets a sequence that begins with this packed prompt; None = nobody serves."""
        ranks = list(self._ranks.values())
        if not ranks:
            return None
        hashes = self._hashes(prompt) if self._config.parallel.data > 1 else []
        rank = ranks[
            balance.choose([balance.Candidate(rank.load(), rank.sent_blocks.held(hashes), rank.last_chosen) for rank in ranks])
        ]
        rank.sent_blocks.add(hashes)
        self._choices += 1
        rank.last_chosen = self._choices
        return rank

    def _hashes(self, prompt: bytes) -> list[int]:
        """The answers of one request share their prompt, so it is hashed once."""
        if self._hashed[0] is not prompt:
            block_size = min(rank.hello.block_size for rank in self)
            self._hashed = prompt, balance.block_hashes(prompt, block_size=block_size)
        return self._hashed[1]

    def _is_awaited(self, rank: int) -> bool:
        return rank not in self._told or self._told[rank].is_awaited
