"""Ray in this pod, for its launcher: started and adopted; in the leader, what the actor manager is told and says.

Invariants: what ``ray start`` leaves behind becomes the launcher's own children, so that their deaths have causes; what Ray says of
an actor is believed only where its own pod's launcher does not say it. Does not decide: ``lifecycle.py`` does.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from enginehouse_engine.launcher import actor_orders, ray_node, ray_unit, termination
from enginehouse_engine.launcher.actions import Action
from enginehouse_engine.launcher.actors import Actors
from enginehouse_engine.launcher.children import Children
from enginehouse_engine.launcher.control import ControlServer
from enginehouse_engine.launcher.engine_config import workers_here
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.process import RAY_START, Process
from enginehouse_engine.launcher.ray_unit import MANAGER
from enginehouse_engine.launcher.termination import Cause, Exit
from enginehouse_engine.options import Options
from enginehouse_engine.ray import manager_messages
from enginehouse_engine.ray.manager_messages import Ended, Placement, PlacementState

logger = logging.getLogger("enginehouse.launcher")

START: Final = Process(role=RAY_START, rank=None, index=0, incarnation=1)
UNREGISTERED_SECONDS: Final = 1.0
"""An actor that Ray says has ended may have registered just before, here or in another member, and its launcher then knows more."""
_COMMANDS: Final = {"gcs-server": "gcs_server", "raylet": "raylet"}
"""What the kernel calls them."""

Spawn = Callable[[Process, list[str], Mapping[str, str]], int]


class RayCluster:
    """This pod's part. Idle until :meth:`start`, for ever without executor Ray."""

    def __init__(
        self, options: Options, *, life: Lifecycle, children: Children, actors: Actors, control: ControlServer, directory: Path
    ) -> None:
        self.actors = actors
        self._options = options
        self._life = life
        self._children = children
        self._control = control
        self._directory = directory
        self._told: manager_messages.Actors | None = None
        self._left: dict[int, int] = {}
        """The last incarnation of each rank that has left the list, for good: a worker of it may be told of after that."""
        self._number = 0
        self._asked: dict[tuple[int, int], int] = {}
        """Ranks and incarnations that the manager may not know of yet, and the list in which they were asked for."""
        self._doubtful: dict[Process, tuple[float, str]] = {}
        """Actors that have ended and, as far as is known, never registered: how long that may change, and what Ray said."""
        self._resource = "GPU" if _has_gpus() else ray_node.ACCELERATOR

    def start(self, spawn: Spawn, *, address: str) -> list[Action]:
        """``address``: this pod's, for the others."""
        if importlib.util.find_spec("ray") is None:
            text = "executor Ray needs the package ray, which is not installed: use an image or an environment that has it"
            return self._life.refused(Cause(termination.INVALID_CONFIG, text))
        argv = ray_node.command_line(
            member=self._options.member,
            address=address or ray_node.LOOPBACK,
            head=getattr(self._life, "head", ""),
            workers=workers_here(self._options),
            gpus=self._resource == "GPU",
            name=socket.gethostname(),
            directory=self._directory / "r",
        )
        try:
            pid = spawn(START, argv, self.environment())
        except OSError as error:
            return self._life.refused(Cause(termination.EXCEPTION, f"Ray cannot be started: {error}"))
        return self._life.started(START, pid=pid)

    def environment(self) -> dict[str, str]:
        """Of all that speak to Ray."""
        return ray_node.environment(
            os.environ, run_directory=self._directory, token_file=self._token_file(), is_head=not self._options.member
        )

    def _token_file(self) -> Path:
        """Ray listens on all addresses and runs what it is sent: without a token of others there is one of our own."""
        if self._options.ray_token_file is not None:
            return self._options.ray_token_file
        own = self._directory / "ray-token"
        if not own.exists():
            own.touch(mode=0o600)
            own.write_text(secrets.token_hex(32))
        return own

    def start_ended(self, exit: Exit, *, evidence: str) -> list[Action]:
        """``ray start`` is reaped."""
        wanted = {_COMMANDS[process.role]: process for process in ray_unit.adopted(self._life.ray)} if self._life.ray else {}
        found = self._children.adopt(wanted)
        for process, pid in found.items():
            logger.info("adopted %s, pid %d", process, pid)
        missing = [str(process) for process in wanted.values() if process not in found]
        actions: list[Action] = []
        if exit != Exit(exit_code=0) or missing:
            text = f"Ray has not started: ray start {exit}" + (f", and there is no {', no '.join(missing)}" if missing else "")
            actions = self._life.refused(Cause(termination.EXCEPTION, text, process=START, exit=exit, evidence=evidence))
        return actions + self._life.ray_runs(found)

    def said(self, message: Placement | Ended) -> list[Action]:
        """By the manager."""
        if isinstance(message, Placement):
            self._life.placement = message.ranks
            return self._life.placed(self._places(message))
        process = Process(role=message.role, rank=message.rank, index=message.index, incarnation=message.incarnation)
        self.actors.told(process, message.message)
        if not any(process in unit.seen for unit in self._life.units):
            self._doubtful[process] = (time.monotonic() + UNREGISTERED_SECONDS, message.message)
        return []

    def _places(self, said: Placement) -> dict[tuple[int, int], bool]:
        """Of whom there is anything, or is about to be: the manager may not have known of the newest."""
        self._asked = {key: number for key, number in self._asked.items() if number > said.number}
        there = {(rank.rank, rank.incarnation): rank.state == PlacementState.PLACED for rank in said.ranks}
        return dict.fromkeys(self._asked, False) | there

    @property
    def retry_at(self) -> float:
        """When :meth:`bring_up_to_date` is due."""
        return min(self.actors.retry_at, min((due for due, _ in self._doubtful.values()), default=math.inf))

    def judge(self, now: float) -> list[Action]:
        """Of whom nothing more came in time."""
        self.actors.judge(now)
        actions: list[Action] = []
        for process, (due, message) in list(self._doubtful.items()):
            unit = next((unit for unit in self._life.units if process in unit.processes), None)
            if unit is None or unit.over or process in unit.seen:
                del self._doubtful[process]
            elif now >= due:
                del self._doubtful[process]
                actions += self._life.not_started(process, reason=message)
        return actions

    def bring_up_to_date(self) -> None:
        """Tell the manager who shall exist, if it was not told yet."""
        options = self._options
        wanted = actor_orders.actors(
            self._life,
            engine=options.engine_name or options.replica_uid,
            strategy=options.ray_strategy,
            resource=self._resource,
        )
        if wanted is None or options.member:
            return
        ranks = tuple(rank for rank in wanted.ranks if rank.incarnation > self._left.get(rank.rank, 0))
        wanted = msgspec.structs.replace(wanted, ranks=ranks)
        if wanted != self._told:
            before = () if self._told is None else self._told.ranks
            self._left |= {rank.rank: rank.incarnation for rank in before if rank not in ranks}
            self._told = wanted
            self._number += 1
            for rank in wanted.ranks:
                self._asked.setdefault((rank.rank, rank.incarnation), self._number)
            self._life.ranks.held |= self._asked.keys()
            self._control.send(MANAGER, msgspec.to_builtins(msgspec.structs.replace(wanted, number=self._number)))


def _has_gpus() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))
