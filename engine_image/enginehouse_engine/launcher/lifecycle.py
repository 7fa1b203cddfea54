"""The life of one engine: what was seen of its processes, and what the launcher does about it. Pure; the clock is passed in.

Starting -> Serving -> Draining -> Stopping -> Ended. Every method tells what happened and returns what to do, in order.

Invariants: an exit that nobody asked for is a death, whatever its code, and the first death is the cause; after a death or a
request to stop nothing is started; every phase but Serving has a deadline, and a missed one names who was missing.
Does no I/O: ``launch.py`` does what is returned here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from enginehouse_engine.launcher import messages, termination
from enginehouse_engine.launcher.actions import Action, FetchModel, Kill, Report, Send, Start
from enginehouse_engine.launcher.process import API_SERVER, ENGINE_CORE, MODEL_FETCH, WORKER, Process
from enginehouse_engine.launcher.termination import Cause, Exit

SETTLE_SECONDS: Final = 5.0
"""In a pod: how long requests are still accepted, since endpoints elsewhere hear of the end later than the pod does."""
DRAIN_MARGIN_SECONDS: Final = 5.0
"""Beyond the drain timeout, for the answer to arrive."""
STOP_SECONDS: Final = 10.0
"""From ``stop`` to SIGKILL in an orderly end."""
STOP_AFTER_DEATH_SECONDS: Final = 2.0
"""The same after a death: time for the API servers to fail their requests with an error."""


class Phase(StrEnum):
    """Of the engine; the monitor's words for it are in :meth:`Lifecycle.state`."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass
class _Seen:
    """What is known of one process that was started."""

    pid: int
    registered: bool = False
    stage: str = ""
    endpoint: str = ""
    record: dict[str, Any] | None = None
    ready: messages.Ready | None = None
    drained: bool = False
    failed: messages.Failed | None = None
    asked_to_stop: bool = False
    killed: bool = False
    exited: bool = False


@dataclass
class Lifecycle:
    """``processes`` are all that the engine consists of; ``now`` is any monotonic clock, in seconds, everywhere the same."""

    processes: tuple[Process, ...]
    replica_uid: str
    startup_timeout_seconds: float
    drain_timeout_seconds: float
    now: float
    monitor: str = ""
    """The monitor's socket, for messages; empty = no monitor."""

    phase: Phase = Phase.STARTING
    cause: Cause | None = None
    deadline: float = field(init=False)
    _stored: bool = False
    _culprit: Process | None = None
    _seen: dict[Process, _Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.deadline = self.now + self.startup_timeout_seconds

    # What happened

    def begin(self) -> list[Action]:
        """Nothing has happened yet."""
        return [] if self.monitor else [FetchModel()]

    def monitor_stored(self) -> list[Action]:
        """The row with this pod's UID is in the API. Said again after each restart of the monitor."""
        if self._stored or self.phase is not Phase.STARTING:
            return []
        self._stored = True
        return [FetchModel()]

    def model_found(self) -> list[Action]:
        """The model is on this machine."""
        return [Start(self.processes)] if self.phase is Phase.STARTING else []

    def refused(self, cause: Cause) -> list[Action]:
        """The engine cannot start, for a reason that is no death of its processes. Of no interest when it ends already."""
        return self._fall(cause) if self.phase is Phase.STARTING else []

    def started(self, process: Process, *, pid: int) -> list[Action]:
        """The process runs."""
        self._seen[process] = _Seen(pid=pid)
        # A signal can come between two starts.
        return [] if self.phase is Phase.STARTING else self._kill([process])

    def may_register(self, process: Process, *, pid: int) -> str:
        """Why ``process`` may not register; empty = it may."""
        seen = self._seen.get(process)
        if seen is None or process.role == MODEL_FETCH:
            return f"this launcher has not started {process} (incarnation {process.incarnation})"
        if seen.registered:
            return f"{process} (incarnation {process.incarnation}) is registered already, with pid {seen.pid}"
        if seen.pid != pid:
            return f"{process} has pid {seen.pid}, the message came from pid {pid}"
        return ""

    def registered(self, process: Process) -> list[Action]:
        """The process handed its pipe over."""
        self._seen[process].registered = True
        if process.role == API_SERVER:
            return [Send(process, self._ranks())]
        return self._addresses([process])

    def said(self, process: Process, message: messages.FromProcess) -> list[Action]:
        """A message of a registered process."""
        seen = self._seen[process]
        match message:
            case messages.Stage(stage=stage):
                seen.stage = stage
            case messages.Failed():
                seen.failed = message
            case messages.Bound(endpoint=endpoint):
                seen.endpoint = endpoint
                return self._addresses(self._alive(ENGINE_CORE))
            case messages.Published(record=record):
                seen.record = record
                return self._peers(process)
            case messages.Ready():
                seen.ready = message
                return self._check_ready()
            case messages.Drained():
                seen.drained = True
                return self._check_drained()
            case messages.Register():
                pass  # A second registration on the same connection says nothing new.
        return []

    def pipe_closed(self, process: Process, *, bye: bool) -> list[Action]:
        """The process is dying: its exit follows, after the kernel has released its memory."""
        seen = self._seen[process]
        if seen.exited or seen.killed or (bye and seen.asked_to_stop):
            return []
        self._culprit = self._culprit or process
        # It may live on without its pipe (an exec did that): then nobody could see its death.
        return self._kill([process]) + self._fall(None)

    def exited(self, process: Process, *, exit: Exit, out_of_memory: bool) -> list[Action]:
        """The process is gone and reaped."""
        seen = self._seen[process]
        seen.exited = True
        if process.role == MODEL_FETCH:
            return self._check_ended()
        death = termination.cause_of(process, pid=seen.pid, exit=exit, failed=seen.failed, out_of_memory=out_of_memory)
        planned = self._culprit != process and (seen.killed or (seen.asked_to_stop and exit.exit_code == 0))
        report: list[Action] = [Report(process, _exited(death, process, planned=planned))] if seen.registered else []
        if planned:
            return report + self._check_drained() + self._check_ended()
        self._culprit = self._culprit or process
        return report + self._fall(death if self._culprit == process else None) + self._check_ended()

    def asked_to_stop(self, *, timeout_seconds: float | None = None) -> list[Action]:
        """SIGTERM, SIGINT or the monitor's ``drain``. A second time, or with timeout 0, the requests under way are cut."""
        if self.phase is Phase.SERVING and timeout_seconds != 0:
            settle = SETTLE_SECONDS if self.monitor else 0.0
            timeout = self.drain_timeout_seconds + settle if timeout_seconds is None else timeout_seconds
            self.phase = Phase.DRAINING
            self.deadline = self.now + timeout + DRAIN_MARGIN_SECONDS
            message = {"type": "drain", "timeoutSeconds": timeout, "settleSeconds": settle}
            return [Send(server, message) for server in self._alive(API_SERVER)]
        if self.phase in (Phase.SERVING, Phase.DRAINING):
            return self._stop(seconds=STOP_SECONDS)
        if self.phase is Phase.STARTING:
            return self._stop(seconds=0.0)
        return self._kill(self._alive())

    def clock(self, now: float) -> list[Action]:
        """Called at every wake-up before what has happened is told."""
        self.now = now
        if now < self.deadline:
            return []
        match self.phase:
            case Phase.STARTING:
                return self._fall(self._startup_timeout())
            case Phase.DRAINING:
                return self._stop(seconds=STOP_SECONDS)
            case _:
                self.deadline = math.inf
                return self._kill(self._alive())

    # What others want to know

    def state(self) -> dict[str, Any]:
        """The ``state`` message for the monitor: whole, the same while nothing changed."""
        failed = self.cause is not None or self._culprit is not None
        words = {
            Phase.STARTING: ("Starting", "Starting"),
            Phase.SERVING: ("Serving", "Serving"),
            Phase.DRAINING: ("Draining", "Draining"),
            Phase.STOPPING: ("Draining", "Draining"),
            Phase.ENDED: ("Ended", "Draining"),
        }
        member, rank = ("Failed", "Dead") if failed else words[self.phase]
        fits = {fit.rank: {"maxContextLength": fit.max_context_length, "kvBlocks": fit.kv_blocks} for fit in self._fits()}
        ranks = [
            {"rank": core.rank, "incarnation": core.incarnation, "state": rank, **fits.get(core.rank or 0, {})}
            for core in self.processes
            if core.role == ENGINE_CORE
        ]
        return {"type": "state", "state": member, "ranks": ranks}

    def max_context_length(self) -> int:
        """What every API server accepts (tokens). Only while serving."""
        return min(seen.ready.max_context_length for seen in self._seen.values() if seen.ready)

    # Decisions

    def _addresses(self, cores: Iterable[Process]) -> list[Action]:
        """The whole list, to each core that is registered, once it is complete."""
        servers = [process for process in self.processes if process.role == API_SERVER]
        endpoints = [self._seen[server].endpoint for server in servers if server in self._seen]
        if len(endpoints) < len(servers) or not all(endpoints) or self.phase in (Phase.STOPPING, Phase.ENDED):
            return []
        front_ends = [{"index": server.index, "endpoint": endpoint} for server, endpoint in zip(servers, endpoints, strict=True)]
        message = {"type": "addresses", "frontEnds": front_ends, "replicaUid": self.replica_uid}
        return [Send(core, message) for core in cores if core.role == ENGINE_CORE and self._seen[core].registered]

    def _peers(self, process: Process) -> list[Action]:
        """Everybody's record to everybody in the rank, once the last one has come."""
        rank = [other for other in self.processes if (other.rank, other.incarnation) == (process.rank, process.incarnation)]
        known = [self._seen[other].record for other in rank if other in self._seen]
        if WORKER not in {other.role for other in rank} or len(known) < len(rank) or None in known:
            return []
        records = [{"role": other.role, "index": other.index, "record": self._seen[other].record} for other in rank]
        identity = {"replicaUid": self.replica_uid, "rank": process.rank, "incarnation": process.incarnation}
        return [Send(other, {"type": "peers", **identity, "records": records}) for other in rank]

    def _ranks(self) -> dict[str, Any]:
        """What every API server is told of the ranks."""
        ranks = [{key: rank[key] for key in ("rank", "incarnation", "state")} for rank in self.state()["ranks"]]
        return {"type": "ranks", "ranks": ranks}

    def _check_ready(self) -> list[Action]:
        if self.phase is Phase.STARTING and not self._missing():
            self.phase = Phase.SERVING
            self.deadline = math.inf
            return [Send(server, self._ranks()) for server in self._alive(API_SERVER)]
        return []

    def _check_drained(self) -> list[Action]:
        if self.phase is Phase.DRAINING and all(self._seen[server].drained for server in self._alive(API_SERVER)):
            return self._stop(seconds=STOP_SECONDS)
        return []

    def _check_ended(self) -> list[Action]:
        if self.phase is Phase.STOPPING and not self._alive():
            self.phase = Phase.ENDED
            self.deadline = math.inf
        return []

    def _fall(self, cause: Cause | None) -> list[Action]:
        """Something broke: the rest goes down with it. ``cause`` is None until a dying process's exit tells it."""
        self.cause = self.cause or cause
        match self.phase:
            case Phase.STARTING:
                return self._stop(seconds=0.0)
            case Phase.SERVING | Phase.DRAINING:
                return self._stop(seconds=STOP_AFTER_DEATH_SECONDS)
            case _:
                return []

    def _stop(self, *, seconds: float) -> list[Action]:
        """Ask, and kill after ``seconds``. 0 is for processes that import or load: they have nothing to lose and do not listen."""
        self.phase = Phase.STOPPING
        self.deadline = self.now + seconds
        actions: list[Action] = []
        for process in self._alive():
            if seconds and self._seen[process].registered:
                self._seen[process].asked_to_stop = True
                actions.append(Send(process, {"type": "stop"}))
            else:
                actions += self._kill([process])
        return actions + self._check_ended()

    def _kill(self, processes: Iterable[Process]) -> list[Action]:
        victims = [process for process in processes if not self._seen[process].exited]
        for process in victims:
            self._seen[process].killed = True
        return [Kill(process) for process in victims]

    def _alive(self, role: str | None = None) -> list[Process]:
        """Started and not reaped."""
        return [process for process, seen in self._seen.items() if not seen.exited and role in (None, process.role)]

    def _fits(self) -> tuple[messages.Fit, ...]:
        """Each rank's fit, as the first ready API server told it."""
        return next((seen.ready.ranks for seen in self._seen.values() if seen.ready), ())

    def _missing(self) -> list[Process]:
        """API servers that are not ready, and cores that some API server does not know yet."""
        answers = [self._seen[server].ready for server in self._alive(API_SERVER)]
        known = [{fit.rank for fit in answer.ranks} if answer else set() for answer in answers]
        return [
            process
            for process in self.processes
            if process not in self._seen
            or (process.role == API_SERVER and self._seen[process].ready is None)
            or (process.role == ENGINE_CORE and not all(process.rank in ranks for ranks in known))
        ]

    def _startup_timeout(self) -> Cause:
        return Cause(
            kind=termination.STARTUP_TIMEOUT,
            message=f"not ready after {self.startup_timeout_seconds:g} s, waiting for: {'; '.join(self._awaited())}",
        )

    def _awaited(self) -> list[str]:
        if self.monitor and not self._stored:
            return [f"the monitor at {self.monitor} to store this pod's row"]
        if not any(process in self._seen for process in self.processes):
            return ["the model's download"]
        return [f"{process} ({self._progress(process)})" for process in self._missing()]

    def _progress(self, process: Process) -> str:
        seen = self._seen.get(process)
        if seen is None:
            return "not started"
        if not seen.registered:
            return f"pid {seen.pid}, not registered"
        return f"pid {seen.pid}, stage {seen.stage or 'registered'}"


def _exited(death: Cause, process: Process, *, planned: bool) -> dict[str, Any]:
    fields = death.fields()
    if planned:
        fields |= {"message": f"{process} {death.exit}"}
    return {"type": "exited", **fields, "index": process.index, "planned": planned}
