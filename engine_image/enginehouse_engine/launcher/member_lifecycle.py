"""The life of what one member holds that is not the leader: parts of ranks, whose engine cores live elsewhere. Pure.

Like every engine's (``lifecycle.py``), but for what only the leader can know: when a rank serves, who its peers are, and when it
ends in order. A death here ends this part of its rank at once, and the leader hears of it; nothing is started again.

Invariants: without the leader's word nothing starts, and without the leader nothing goes on; asked to stop, this member holds out
until the leader has come to its end in order, or its time is over; exit code 0 only after an end that the leader had planned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from enginehouse_engine.launcher import termination
from enginehouse_engine.launcher.actions import Action, Send
from enginehouse_engine.launcher.lifecycle import Lifecycle, ask_to_stop
from enginehouse_engine.launcher.member_messages import Orders, RankOrder, Report, WorkerState, death_of
from enginehouse_engine.launcher.phase import DRAIN_MARGIN_SECONDS, SETTLE_SECONDS, STOP_SECONDS, Phase
from enginehouse_engine.launcher.termination import Cause
from enginehouse_engine.launcher.unit import Unit, UnitState

_PLANNED = frozenset({"Draining", "Ended"})
"""States of a leader that ends as it was asked to."""


@dataclass
class MemberLifecycle(Lifecycle):
    """``leader`` and ``name`` are for messages: its address, and which member this is."""

    leader: str = ""
    name: str = ""

    has_joined: bool = False
    """The leader has let this member in."""
    _leader_is_gone: bool = False
    _leaving: bool = False
    _leader_state: str = ""
    _orders: dict[int, RankOrder] = field(default_factory=dict)

    def ordered(self, orders: Orders) -> list[Action]:
        """The leader's whole word. With the first one it lets this member in, and its start-up timeout counts from there on."""
        if not self.has_joined and self.phase is Phase.STARTING:
            self._deadline = math.inf
        self.has_joined = True
        self._leader_state = orders.state
        actions: list[Action] = []
        for order in orders.ranks:
            unit = next((unit for unit in self.units if unit.processes[0].rank == order.rank), None)
            if unit is not None:
                self._orders[order.rank] = order
                actions += self._obey(order, unit)
        if self.phase is Phase.STARTING and any(unit.lives for unit in self.units):
            self.phase = Phase.SERVING
        return self._tell() + actions + self._check_ended()

    def leader_gone(self, reason: str) -> list[Action]:
        """The connection is over. After an end that was planned, or that has a cause already, this says nothing new."""
        self._leader_is_gone = True
        if self.phase in (Phase.STOPPING, Phase.ENDED):
            return self._kill_all() + self._check_ended()
        if self._leader_state not in _PLANNED or any(unit.lives for unit in self.units):
            text = f"{self.name} cannot go on: its leader at {self.leader} is gone: {reason}"
            self._own_cause = Cause(termination.EXCEPTION, text)
        return self._stop(seconds=0.0)

    def asked_to_stop(self, *, timeout_seconds: float | None = None) -> list[Action]:
        """The leader hears of it, and drains; only a second time is anything cut."""
        self._leaving = True
        return super().asked_to_stop(timeout_seconds=timeout_seconds)

    def report(self) -> Report:
        """For the leader: everything."""
        workers = [
            WorkerState(
                rank=process.rank or 0,
                index=process.index,
                pid=seen.pid,
                registered=seen.registered,
                stage=seen.stage,
                record=seen.record,
                failed=seen.failed,
                died=unit.culprit == process,
                exit=death_of(seen.death),
            )
            for unit in self.units
            for process, seen in unit.seen.items()
        ]
        return Report(leaving=self._leaving, workers=tuple(workers))

    def state(self) -> dict[str, Any]:
        """As anywhere, but that the leader knows how far a rank is that has not died here."""
        message = super().state()
        if self.phase in (Phase.STARTING, Phase.SERVING):
            for rank in message["ranks"]:
                order = self._orders.get(rank["rank"])
                if order is not None and rank["state"] != UnitState.DEAD:
                    rank["state"] = order.state
        return message

    @property
    def cause(self) -> Cause | None:
        text = f"the leader at {self.leader} has ended what {self.name} holds, and did not say why"
        return super().cause or (Cause(termination.EXCEPTION, text) if self._fallen else None)

    def _obey(self, order: RankOrder, unit: Unit) -> list[Action]:
        if order.end == "kill":
            return self._abort(unit, order.cause.cause() if order.cause else None)
        if order.end == "stop" and not unit.over and self.phase is not Phase.STARTING:
            if self.phase is not Phase.STOPPING:
                self.phase = Phase.STOPPING
                self._deadline = self.now + STOP_SECONDS
            return [] if any(seen.asked_to_stop for seen in unit.seen.values()) else ask_to_stop(unit, workers=True)
        if order.state == UnitState.SERVING and unit.state is UnitState.STARTING and not unit.over:
            unit.serves()
        return []

    def _abort(self, unit: Unit, cause: Cause | None) -> list[Action]:
        """The leader does not want this part any more: it starts no more after a signal, or somebody else of the rank died."""
        if self._leader_state in _PLANNED:
            unit.over = True
            return unit.kill() + (self._stop(seconds=0.0) if self.phase in (Phase.STARTING, Phase.SERVING) else [])
        actions: list[Action] = []
        if not unit.over:
            self._fallen.append(unit)
            actions = unit.end() + self._end_without_living()
        if unit.cause is None:
            unit.cause = cause
        return actions

    # What the leader decides elsewhere

    def _tell(self) -> list[Action]:
        actions: list[Action] = []
        for unit in self.units:
            order = self._orders.get(unit.processes[0].rank or 0)
            for process, seen in unit.seen.items():
                if order and order.peers and seen.listens and "peers" not in seen.told:
                    seen.told["peers"] = order.peers
                    actions.append(Send(process, order.peers))
        return actions

    def _end_without_living(self) -> list[Action]:
        if self.phase in (Phase.STOPPING, Phase.ENDED) or any(unit.lives for unit in self.units):
            return []
        return self._stop(seconds=0.0)

    def _drain(self, timeout_seconds: float | None) -> list[Action]:
        seconds = self.drain_timeout_seconds if timeout_seconds is None else timeout_seconds
        self.phase = Phase.DRAINING
        self._deadline = self.now + seconds + SETTLE_SECONDS + DRAIN_MARGIN_SECONDS + STOP_SECONDS
        return []

    def _check_drained(self) -> list[Action]:
        return []

    def _check_ended(self) -> list[Action]:
        """A part that the leader ended has a cause elsewhere, which is about to be told."""
        untold = any(unit.cause is None for unit in self._fallen) and not self._leader_is_gone
        return [] if untold else super()._check_ended()

    def _awaited(self) -> list[str]:
        if self.has_joined or (self.monitor and not self._stored):
            return super()._awaited()
        return [f"the leader at {self.leader} to let {self.name} in"]
