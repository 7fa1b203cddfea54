"""The life of what one member holds that is not the leader: parts of ranks, whose engine cores live elsewhere. Pure.

Like every engine's (``lifecycle.py``), but for what only the leader can know: when a rank serves, who its peers are, and when it
ends in order. A death here ends this part of its rank at once, and the leader hears of it; nothing is started again.

Invariants: without the leader's word nothing starts, and without the leader nothing goes on; asked to stop, this member holds out
until the leader has come to its end in order, or its time is over; exit code 0 only after an end that the leader had planned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enginehouse_engine.launcher import termination
from enginehouse_engine.launcher.actions import Action, Send, Start
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.member_messages import Orders, RankOrder, Report, WorkerState
from enginehouse_engine.launcher.phase import DRAIN_MARGIN_SECONDS, REAP_SECONDS, SETTLE_SECONDS, STOP_SECONDS, Phase
from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.termination import Cause, cause_told, death_of
from enginehouse_engine.launcher.unit import Unit, UnitState
from enginehouse_engine.launcher.units import in_order

_PLANNED = frozenset({"Draining", "Ended"})
"""States of a leader that ends as it was asked to."""


@dataclass
class MemberLifecycle(Lifecycle):
    """``leader`` and ``name`` are for messages: its address, and which member this is; ``number`` among all."""

    leader: str = ""
    name: str = ""
    number: int = 0

    has_joined: bool = False
    """The leader has let this member in."""
    head: str = ""
    """Where the leader's Ray is, once it runs."""
    _has_model: bool = False
    _leader_is_gone: bool = False
    _leaving: bool = False
    _leader_state: str = ""
    _orders: dict[int, RankOrder] = field(default_factory=dict)

    def model_found(self) -> list[Action]:
        """Ray is started where there is a head to join."""
        self._has_model = True
        return self._go_on_with_model()

    def ray_runs(self, pids: Mapping[Process, int]) -> list[Action]:
        """From here on it is the leader who waits for this member's workers."""
        if self.phase is Phase.STARTING:
            self._deadline = math.inf
        return super().ray_runs(pids)

    def _go_on_with_model(self) -> list[Action]:
        if not self._has_model or (self.ray is not None and not self.head):
            return []
        if self.ray is not None:
            self._deadline = self.now + self.startup_timeout_seconds
        return super().model_found()

    def ordered(self, orders: Orders) -> list[Action]:
        """The leader's whole word. With the first one it lets this member in, and its start-up timeout counts from there on."""
        if not self.has_joined and self.phase is Phase.STARTING:
            self._deadline = math.inf
        self.has_joined = True
        if orders.state in _PLANNED and self._leader_state not in _PLANNED:
            self._forget_deaths()
        self._leader_state = orders.state
        actions: list[Action] = []
        if orders.ray and not self.head:
            self.head = orders.ray
            actions += self._go_on_with_model()
        self._forget_those_that_left(orders)
        for order in orders.ranks:
            actions += self._part_of(order)
            unit = next((unit for unit in self.units if unit.rank == order.rank), None)
            if unit is not None and unit.incarnation == order.incarnation:
                self._orders[order.rank] = order
                actions += self._obey(order, unit)
        if self.phase is Phase.SERVING:
            # Of a rank that left, or that is back, nobody dies any more.
            self._fallen = [fallen for fallen in self._fallen if any(fallen is unit for unit in self.units)]
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

    def asked_to_stop(self) -> list[Action]:
        """The leader hears of it, and drains; only a second time is anything cut. Where all have left nothing is waited for."""
        if self.phase is Phase.SERVING and not any(unit.lives or unit.alive() for unit in self.units):
            self._forget_deaths()
            return self._stop(seconds=0.0)
        self._leaving = True
        return super().asked_to_stop()

    def asked_to_end_ranks(self, ranks: tuple[int, ...], *, cause: Cause | None = None) -> list[Action]:
        """Of a death that its monitor saw before the cause was known, the leader is about to tell the cause."""
        actions = super().asked_to_end_ranks(ranks, cause=cause)
        for unit in self._fallen:
            if unit.cause is not None and unit.cause.kind == termination.UNKNOWN:
                unit.cause = None
        return actions

    def report(self) -> Report:
        """For the leader: everything."""
        workers = [
            WorkerState(
                rank=process.rank or 0,
                index=process.index,
                pid=seen.pid,
                registered=seen.registered,
                stage=seen.stage,
                incarnation=process.incarnation,
                record=seen.record,
                failed=seen.failed,
                stopped=seen.stopped,
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

    def _forget_those_that_left(self, orders: Orders) -> None:
        """The leader does not speak of them any more; and nothing of them is left."""
        here = {order.rank for order in orders.ranks}
        self.units = tuple(unit for unit in self.units if unit.rank in here or not unit.seen or not unit.is_reaped)

    def _part_of(self, order: RankOrder) -> list[Action]:
        """Of a rank that joins, or that comes back after it left."""
        unit = next((unit for unit in self.units if unit.rank == order.rank), None)
        if unit is not None and unit.incarnation >= order.incarnation:
            return []
        if unit is not None and not unit.seen and not unit.over:
            unit.begin(order.incarnation)
            return []
        if order.end or self.phase not in (Phase.STARTING, Phase.SERVING) or not (unit is None or unit.is_reaped):
            return []
        whole = self.ranks.make(order.rank, incarnation=order.incarnation)
        part = Unit(tuple(process for process in whole.processes if process.member == self.number))
        self.units = in_order((*(other for other in self.units if other is not unit), part))
        return [Start(part.processes)] if self._begun else []

    def _obey(self, order: RankOrder, unit: Unit) -> list[Action]:
        if order.end == "kill" and order.state == UnitState.DRAINING and self._leader_state not in _PLANNED:
            # It leaves, and has nothing to lose or no more time; the others start or serve on.
            unit.leaves = True
            return unit.end()
        if order.end == "kill":
            return self._abort(unit, cause_told(order.cause) if order.cause else None)
        if order.end == "stop" and not unit.over and self.phase is not Phase.STARTING:
            if self._leader_state == UnitState.SERVING:
                # This rank leaves, and the others go on; so does this member, until its pod is not wanted any more.
                if not unit.leaves:
                    unit.leave(drained_by=self.now + STOP_SECONDS, gone_by=self.now + REAP_SECONDS)
            elif self.phase is not Phase.STOPPING:
                self.phase = Phase.STOPPING
                self._deadline = self.now + STOP_SECONDS
            return [] if any(seen.asked_to_stop for seen in unit.seen.values()) else unit.ask_to_stop(workers=True)
        if order.state == UnitState.SERVING and unit.state is UnitState.STARTING and not unit.over:
            unit.serves()
        return []

    def _abort(self, unit: Unit, cause: Cause | None) -> list[Action]:
        """The leader does not want this part any more: it starts no more after a signal, or somebody else of the rank died."""
        if self._leader_state in _PLANNED:
            return unit.end() + self._end_without_living()
        actions: list[Action] = []
        if not unit.leaves and not any(other is unit for other in self._fallen):
            # Also one that had fallen before the leader was asked to end, and failed in that end.
            self._fallen.append(unit)
        if not unit.over:
            actions = unit.end(asked_first=True) + self._end_without_living()
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

    def _fit_ranks(self) -> list[Action]:
        return []

    def _end_without_living(self) -> list[Action]:
        if self.phase in (Phase.STOPPING, Phase.ENDED) or any(unit.lives for unit in self.units):
            return []
        return self._stop(seconds=0.0)

    def _drain(self) -> list[Action]:
        self.phase = Phase.DRAINING
        self._deadline = self.now + self.drain_timeout_seconds + SETTLE_SECONDS + DRAIN_MARGIN_SECONDS + STOP_SECONDS
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
