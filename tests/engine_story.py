"""An engine whose launcher decides without any process: its story told by hand, and what came of it."""

from __future__ import annotations

from typing import Any, Self

from enginehouse_engine.launcher import messages, ray_unit
from enginehouse_engine.launcher.actions import Action, Kill, Report, Send, Start
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.phase import Phase
from enginehouse_engine.launcher.process import API_SERVER, ENGINE_CORE, WORKER, Process
from enginehouse_engine.launcher.rank_set import RankSet
from enginehouse_engine.launcher.termination import Exit
from enginehouse_engine.launcher.units import engine_units, reason_to_refuse

CLEAN = Exit(exit_code=0)
KILLED = Exit(signal=9)
KNOWLEDGE = ("ranks", "addresses", "peers")
"""Messages that tell how things are, and nothing to do."""


def ready(*ranks: int, length: int = 64, incarnation: int = 1) -> messages.Ready:
    fits = tuple(messages.Fit(rank=rank, incarnation=incarnation, max_context_length=length + rank, kv_blocks=5) for rank in ranks)
    return messages.Ready(ranks=fits, max_context_length=length)


class Story:
    """An engine under test; processes get pids from 100 on, in order."""

    def __init__(
        self,
        *,
        servers: int = 1,
        ranks: int = 1,
        workers: int = 0,
        monitor: str = "",
        ray: bool = False,
        needs_places: bool = False,
    ) -> None:
        units = engine_units(api_servers=servers, ranks=ranks, workers=workers)
        self.all = [process for unit in units for process in unit.processes]
        self.servers = [process for process in self.all if process.role == API_SERVER]
        self.cores = [process for process in self.all if process.role == ENGINE_CORE]
        self.workers = [process for process in self.all if process.role == WORKER]
        self.life = Lifecycle(
            units=units,
            ranks=RankSet(ranks, workers=workers, needs_places=needs_places),
            replica_uid="uid",
            startup_timeout_seconds=100,
            drain_timeout_seconds=60,
            hang_stall_seconds=120,
            now=0.0,
            monitor=monitor,
            ray=ray_unit.ray_unit(0) if ray else None,
        )
        self._pids = 99

    def pid(self) -> int:
        self._pids += 1
        return self._pids

    def start(self) -> list[Action]:
        self.life.begin()
        actions = self.life.model_found()
        if self.life.ray is not None:
            actions = self.start_ray()
        for process in self.all:
            assert self.life.started(process, pid=self.pid()) == []
        return actions

    def start_ray(self) -> list[Action]:
        """The model is found: up to the manager's word that actors can be asked for."""
        ray = self.life.ray
        assert ray is not None
        self.life.ray_runs({process: self.pid() for process in ray_unit.adopted(ray)})
        self.life.started(ray_unit.MANAGER, pid=self.pid())
        self.life.registered(ray_unit.MANAGER)
        return self.life.said(ray_unit.MANAGER, messages.Stage(ray_unit.REACHABLE))

    def register(self) -> list[Action]:
        return [action for process in self.all for action in self.life.registered(process)]

    def serve(self) -> Self:
        self.start()
        self.register()
        for server in self.servers:
            self.life.said(server, messages.Bound(endpoint=f"ipc://{server.index}"))
        for server in self.servers:
            self.life.said(server, ready(*(core.rank or 0 for core in self.cores)))
        assert self.life.phase is Phase.SERVING
        return self

    def exit(self, process: Process, exit: Exit, *, bye: bool = False) -> list[Action]:
        closed = self.life.pipe_closed(process, bye=bye)
        return closed + self.life.exited(process, exit=exit, out_of_memory=False)

    def bring_back(self, actions: list[Action]) -> list[Process]:
        """Start and register what is to be started."""
        chosen = started(actions)
        for process in chosen:
            assert self.life.started(process, pid=self.pid()) == []
            self.life.registered(process)
        return chosen

    def refusal(self, process: Process, *, pid: int) -> str:
        """Why it may not register."""
        return reason_to_refuse(process, self.life.units, pid=pid)

    def words(self) -> list[tuple[int, str]]:
        """Incarnation and state of each rank, as the monitor hears them."""
        return [(rank["incarnation"], rank["state"]) for rank in self.life.state()["ranks"]]


def told(actions: list[Action], kind: str) -> list[Process]:
    return [action.process for action in actions if isinstance(action, Send) and action.message["type"] == kind]


def message_of(actions: list[Action], kind: str) -> dict[str, Any]:
    """The only message of a kind, whoever it went to."""
    first, *others = [action.message for action in actions if isinstance(action, Send) and action.message["type"] == kind]
    assert all(other == first for other in others)
    return first


def asked(actions: list[Action]) -> list[Action]:
    """Without what only tells how things are."""
    return [action for action in actions if not (isinstance(action, Send) and action.message["type"] in KNOWLEDGE)]


def killed(actions: list[Action]) -> list[Process]:
    return [action.process for action in actions if isinstance(action, Kill)]


def started(actions: list[Action]) -> list[Process]:
    return [process for action in actions if isinstance(action, Start) for process in action.processes]


def reported(actions: list[Action]) -> list[dict[str, Any]]:
    return [action.message for action in actions if isinstance(action, Report)]
