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

_STARTING: Final = "Starting"
_SERVING: Final = "Serving"
_DRAINING: Final = "Draining"
_DEAD: Final = "Dead"


class RankState(msgspec.Struct, frozen=True):
    """The launcher's word on a rank."""

    rank: int
    incarnation: int
    state: str

    @property
    def is_present(self) -> bool:
        """This incarnation is not over, nor yet to come."""
        return self.state in (_STARTING, _SERVING, _DRAINING)


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
        self._told = {rank: RankState(rank, 0, _STARTING) for rank in range(config.parallel.data)}
        """The launcher's last word; before its first one, the ranks that the engine begins with."""
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
    def taking(self) -> list[Rank]:
        """Those in service that get requests: not those that are about to leave the engine."""
        return [rank for rank in self if not self.is_leaving(rank)]

    @property
    def max_context_length(self) -> int | None:
        """Tokens of prompt and answer together that every rank accepts; None before the first."""
        return self._limit

    @property
    def are_full(self) -> bool:
        """No rank in service takes more."""
        ranks = self.taking
        return bool(ranks) and all(rank.is_full() for rank in ranks)

    def missing(self) -> list[int]:
        """Ranks that serve and are not known here; while the engine starts, those that start with it."""
        states = {told.state for told in self._told.values()}
        awaited = _SERVING if _SERVING in states else _STARTING
        return [rank for rank, told in sorted(self._told.items()) if rank not in self._ranks and told.state == awaited]

    def outage(self) -> str:
        """What became of those that get no requests."""
        taking = {rank.hello.rank for rank in self.taking}
        gone = [told for rank, told in sorted(self._told.items()) if rank not in taking]
        return ", ".join(f"rank {told.rank} is {told.state if told.incarnation else 'gone'}" for told in gone)

    def is_leaving(self, rank: Rank) -> bool:
        """The launcher is about to end it, as soon as it has nothing to do."""
        told = self._told.get(rank.hello.rank)
        return told is not None and told.state == _DRAINING

    def drained(self) -> set[tuple[int, int]]:
        """Rank and incarnation of those that are about to leave, and have nothing to do for this API server any more."""
        leaving = {(told.rank, told.incarnation) for told in self._told.values() if told.state == _DRAINING}
        return leaving - {(rank.hello.rank, rank.hello.incarnation) for rank in self if rank.in_flight}

    def by_identity(self, identity: bytes) -> Rank | None:
        """The rank in service behind a socket."""
        return next((rank for rank in self._ranks.values() if rank.identity == identity), None)

    def told(self, states: Iterable[RankState]) -> list[Rank]:
        """The launcher's whole list; those in service whose incarnation is over. A rank that is not in it has left."""
        before, self._told = self._told, {now.rank: now for now in states}
        for left in before.keys() - self._told.keys():
            self._begin(left, before[left].incarnation + 1)
        for rank, now in self._told.items():
            was = before.get(rank)
            # A rank's incarnation is called restarting both when it has died and when it is the one that comes.
            has_died = was is not None and was.incarnation == now.incarnation and was.is_present and not now.is_present
            self._begin(rank, now.incarnation + (has_died or now.state == _DEAD))
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
        if hello.rank < 0:
            return f"ranks are numbered from 0, found {hello.rank}"
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
        """Who gets a sequence that begins with this packed prompt; None = nobody takes any."""
        ranks = self.taking
        if not ranks:
            return None
        hashes = self._hashes(prompt) if len(ranks) > 1 else []
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

    def _begin(self, rank: int, first: int) -> None:
        """What came before this incarnation is over."""
        self._first[rank] = max(first, self._first.get(rank, 0))
