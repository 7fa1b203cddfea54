"""The actor manager's loop: what the launcher wants, what Ray has, and what is said of it.

Invariants: it sleeps until the launcher says something or a call of an actor ends; only while something is about to come or to go
it looks as well, soon at first and then every second, because Ray tells nobody. What is said is whole, and said when it changed.
It survives whatever a call ends with. Does not decide who lives: the launcher does.
"""

from __future__ import annotations

import logging
import select
import time
from typing import Final

import msgspec

from enginehouse_engine.ray.cluster import Cluster
from enginehouse_engine.ray.manager_messages import Actors, Ended, Placement, decode_actors, shortened
from enginehouse_engine.ray.rank_actors import RankActors
from enginehouse_engine.registration import Registration

logger = logging.getLogger("enginehouse.actors")

_FIRST_LOOK_SECONDS: Final = 0.005
_LAST_LOOK_SECONDS: Final = 1.0


class Loop:
    """``tensor``: how many workers share a pipeline stage."""

    def __init__(self, registration: Registration, cluster: Cluster, *, tensor: int) -> None:
        self._registration = registration
        self._cluster = cluster
        self._tensor = tensor
        self._ranks: dict[tuple[int, int], RankActors] = {}
        """By rank and incarnation."""
        self._said = Placement(())
        self._number = 0
        """Of the newest list."""
        self._look_in = _FIRST_LOOK_SECONDS

    def run(self) -> None:
        """Returns when told to stop; what is in Ray then goes with this process."""
        poller = select.poll()
        poller.register(self._registration.fileno(), select.POLLIN)
        poller.register(self._cluster.fileno(), select.POLLIN)
        while True:
            self._look()
            self._say()
            unsettled = any(not rank.is_settled for rank in self._ranks.values())
            poller.poll(self._look_in * 1000 if unsettled else None)
            self._look_in = min(self._look_in * 2, _LAST_LOOK_SECONDS)
            self._cluster.dispatch()
            while (message := self._registration.receive()) is not None:
                if message["type"] == "stop":
                    return
                if message["type"] == "actors":
                    self._want(decode_actors(message))

    def _want(self, actors: Actors) -> None:
        self._look_in = _FIRST_LOOK_SECONDS
        self._number = actors.number
        wanted = {(rank.rank, rank.incarnation): rank for rank in actors.ranks}
        for key, rank in self._ranks.items():
            if key not in wanted:
                rank.remove()
        for key in wanted:
            if key not in self._ranks:
                self._ranks[key] = RankActors(self._cluster, wanted[key], actors, self._tensor, self._tell)
                self._ranks[key].create()

    def _look(self) -> None:
        if not self._ranks:
            return
        nodes, now = self._cluster.nodes(), time.monotonic()
        for rank in self._ranks.values():
            rank.look(nodes, now=now)
        self._ranks = {key: rank for key, rank in self._ranks.items() if not rank.is_gone}

    def _say(self) -> None:
        placement = Placement(shortened(tuple(rank.placement for _, rank in sorted(self._ranks.items()))), self._number)
        if placement != self._said:
            self._said = placement
            self._registration.send("placement", ranks=msgspec.to_builtins(placement.ranks), number=placement.number)

    def _tell(self, ended: Ended) -> None:
        logger.info("%s %d of rank %d: %s: %s", ended.role, ended.index, ended.rank, ended.how, ended.message)
        fields = msgspec.to_builtins(ended)
        self._registration.send(fields.pop("type"), **fields)
