"""One engine as its launcher sees it: phase, units, who is to blame; and what follows from that for those who want to know. Pure.

Invariant: nothing happens here; the same words while nothing changed. What happens, and what is done about it: ``lifecycle.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from enginehouse_engine.launcher import publications, ray_unit, readiness, units
from enginehouse_engine.launcher.actions import Action
from enginehouse_engine.launcher.hang import HangWatch
from enginehouse_engine.launcher.phase import Phase, member_word, unit_word
from enginehouse_engine.launcher.process import RAY_START, Process
from enginehouse_engine.launcher.rank_set import RankSet
from enginehouse_engine.launcher.termination import Cause
from enginehouse_engine.launcher.unit import Unit, UnitState
from enginehouse_engine.launcher.units import api_servers_of, ranks_of, unit_of
from enginehouse_engine.ray.manager_messages import RankPlacement


@dataclass
class EngineState:
    """``units`` are all that the engine consists of; ``now`` is the clock at the start (seconds, any monotonic one)."""

    units: tuple[Unit, ...]
    ranks: RankSet
    replica_uid: str
    startup_timeout_seconds: float
    drain_timeout_seconds: float
    hang_stall_seconds: float
    now: float
    monitor: str = ""
    """The monitor's socket, for messages; empty = no monitor."""
    ray: Unit | None = None
    """Ray's own processes in this pod and, in the leader, the actor manager: what ranks stand on. None = there is no Ray."""

    placement: tuple[RankPlacement, ...] = ()
    """Where the ranks are in the Ray cluster, or what they wait for, as the actor manager told it last."""

    phase: Phase = Phase.STARTING
    _deadline: float = field(init=False)
    _hang: HangWatch = field(init=False)
    _stored: bool = False
    _begun: bool = False
    """The units were told to start."""
    _errand: Unit | None = None
    """What runs before anything that stays: the model's download, then Ray's start."""
    _own_cause: Cause | None = None
    """Why the engine ends, if no death is to blame."""
    _fallen: list[Unit] = field(default_factory=list)
    """Those whose death was not made good, in the order of their deaths."""
    _all_killed: bool = False
    _replica_ends: bool = False
    """That is why it drains: SIGTERM then says nothing new."""
    _lowest: int | None = None
    """Context length (tokens) that an API server ever accepted; one that comes later must not accept more."""

    def __post_init__(self) -> None:
        self._deadline = self.now + self.startup_timeout_seconds
        self._hang = HangWatch(self.hang_stall_seconds)
        if self.ranks.needs_places:
            for unit in ranks_of(self.units):
                unit.state = UnitState.PENDING

    @property
    def cause(self) -> Cause | None:
        """Why the engine ends, or would have to if it ended now; None = nothing is wrong."""
        return self._own_cause or next((unit.cause for unit in self._fallen if unit.cause is not None), None)

    @property
    def deadline(self) -> float:
        """When :meth:`clock` is due."""
        # Restarts are over with the engine's own end, which has a deadline of its own.
        return min([self._deadline, *(unit.deadline for unit in self.units)]) if self.phase is Phase.SERVING else self._deadline

    @property
    def wakes_at(self) -> float:
        """When :meth:`clock` or :meth:`look_for_hangs` is due."""
        return self.deadline if self.phase in (Phase.STOPPING, Phase.ENDED) else min(self.deadline, self._hang.due)

    def reason_to_refuse(self, process: Process, *, pid: int) -> str:
        """Why a process may not register; empty = it may. An actor that is wanted is known by that alone."""
        unit = next((unit for unit in self.units if process in unit.processes), None)
        if unit is not None and ray_unit.is_actor(process, self.ray) and process not in unit.seen:
            return "" if self._wants(unit) else f"{process} (incarnation {process.incarnation}) is not wanted any more"
        return units.reason_to_refuse(process, self._everything(), pid=pid)

    def known(self, process: Process) -> Process:
        """The one that it registered as, with the member that it lives in: actors are not told that."""
        return next(own for own in self._unit_of(process).processes if own == process)

    def state(self) -> dict[str, Any]:
        """The ``state`` message for the monitor: whole, the same while nothing changed."""
        words = [(unit, unit_word(self.phase, unit.state, ends_badly=self._ends_badly)) for unit in self.units]
        word = member_word(self.phase, ends_badly=self._ends_badly)
        message = publications.state(word, words, max_context_length=self.ranks.lowest)
        shown = {"placement": publications.placement(self.placement)} if ray_unit.is_leader(self.ray) else {}
        return message | shown

    def max_context_length(self) -> int | None:
        """What every API server accepts (tokens), also when the last one that said so is dead by now. None before the first."""
        return self._lowest

    @property
    def _ends_badly(self) -> bool:
        return self.phase in (Phase.STOPPING, Phase.ENDED) and bool(self._own_cause or self._fallen)

    def _tell(self) -> list[Action]:
        """Everything that somebody should know and was not told yet."""
        all_bound = all(any(seen.endpoint for seen in server.seen.values()) for server in api_servers_of(self.units))
        with_addresses = all_bound if self.phase is Phase.STARTING else self.phase in (Phase.SERVING, Phase.DRAINING)
        # That the engine drains is told by ``drain``: until its end comes all ranks take requests, but those that leave.
        words = [(unit, (UnitState.DEAD if self._ends_badly else unit.state).value) for unit in ranks_of(self.units)]
        ranks = publications.ranks(words, max_context_length=self._lowest)
        return publications.untold(self.units, replica_uid=self.replica_uid, ranks=ranks, with_addresses=with_addresses)

    def _awaited(self) -> list[str]:
        if self.monitor and not self._stored:
            return [f"the monitor at {self.monitor} to store this pod's row"]
        if not self._begun:
            has_model = self._errand is not None and self._errand.processes[0].role == RAY_START
            if self.ray is None or not (has_model or self.ray.seen):
                return ["the model's download"]
            if not ray_unit.is_up(self.ray):
                return [ray_unit.awaited(self.ray)]
        return readiness.awaited(readiness.missing(self.units), self.units)

    def _everything(self) -> list[Unit]:
        return [*self.units, *(unit for unit in (self.ray, self._errand) if unit is not None)]

    def _wants(self, unit: Unit) -> bool:
        """Processes of its present incarnation may start."""
        return self.phase in (Phase.STARTING, Phase.SERVING) and not unit.over

    def _unit_of(self, process: Process) -> Unit:
        return unit_of(process, self._everything())
