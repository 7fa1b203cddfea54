"""The launcher's story: bind, tell the monitor, find the model, start, watch, end.

One thread that sleeps in epoll. What happened goes to ``lifecycle.py``, which decides; what it returns is done here.
Invariant: between two sleeps everything that was decided is done, and the monitor's picture is brought up to date.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

from enginehouse_engine import config as configuration
from enginehouse_engine import registration
from enginehouse_engine.config import ConfigError
from enginehouse_engine.launcher import (
    cgroup,
    children,
    http_listener,
    messages,
    model_search,
    replica,
    termination,
)
from enginehouse_engine.launcher.actions import Action, FetchModel, Kill, Report, Send, Start, StartRay
from enginehouse_engine.launcher.actors import Actors
from enginehouse_engine.launcher.command_lines import RunFiles
from enginehouse_engine.launcher.control import ControlServer
from enginehouse_engine.launcher.engine_config import engine_config
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.leader_link import LeaderLink
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.logs import Logs
from enginehouse_engine.launcher.member_links import MemberLinks
from enginehouse_engine.launcher.monitor_link import MonitorLink
from enginehouse_engine.launcher.phase import Phase
from enginehouse_engine.launcher.process import ACTOR_MANAGER, ERRANDS, MODEL_FETCH, RAY_START, Process
from enginehouse_engine.launcher.ray_cluster import RayCluster
from enginehouse_engine.launcher.ray_node import HEAD_PORT, LOOPBACK
from enginehouse_engine.launcher.ray_unit import is_actor
from enginehouse_engine.launcher.spawner import CommandLine, Spawner
from enginehouse_engine.launcher.stack_dumps import StackDumps
from enginehouse_engine.launcher.termination import Cause, Exit
from enginehouse_engine.options import Options
from enginehouse_engine.ray.manager_messages import Ended, Placement

logger = logging.getLogger("enginehouse.launcher")


class Launcher:
    """One engine's supervisor; :meth:`run` is called once."""

    def __init__(
        self,
        options: Options,
        *,
        listener: socket.socket | None,
        door: socket.socket | None,
        run_directory: Path,
        command_line: CommandLine,
        started: float,
        logs: Logs,
    ) -> None:
        """``listener`` is for the clients, ``door`` for the other members; only the leader has them."""
        self._options = options
        self._listener = listener
        self._started = started
        self._address = door.getsockname()[0] if door else ""
        self._files = RunFiles(
            launcher_socket=run_directory / "launcher.sock",
            config=run_directory / "config.json",
            fetched=run_directory / "fetched.json",
            ray=f"{self._address or LOOPBACK}:{HEAD_PORT}",
        )
        self._own_pipe, self._own_write_end = registration.open_death_pipe()
        self._logs = logs
        self._loop = EventLoop()
        self._children = children.Children()
        self._actors = Actors(self._children, self._loop, gone=self._actor_gone)
        self._spawner = Spawner(
            options, self._files, children=self._children, logs=logs, listener=listener, command_line=command_line
        )
        self._stacks = StackDumps(self._actors, logs)
        self._oom_kills = cgroup.OomKills()
        # A terminal that goes away ends the engine in order, but not one that was started with nohup.
        hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        self._loop.watch_signals((signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, *hang_up), self._signal)
        self._control = ControlServer(self._loop, self._files.launcher_socket, self)
        self._model_path = ""
        self._lifecycle: Lifecycle
        self._others: MemberLinks | LeaderLink
        if options.member:
            self._lifecycle, self._others = replica.as_member(
                options, loop=self._loop, started=started, do=self._do, let_in=self._let_in
            )
        else:
            self._lifecycle, self._others = replica.as_leader(options, loop=self._loop, started=started, do=self._do, door=door)
        self._monitor = MonitorLink(
            path=str(options.monitor_socket or ""), own_pipe=self._own_pipe, loop=self._loop, heard=self._monitor_said
        )

        self._ray = RayCluster(
            options,
            life=self._lifecycle,
            children=self._children,
            actors=self._actors,
            control=self._control,
            directory=run_directory,
        )

    def run(self) -> Cause | None:
        """Until the last process is reaped; why, or None after an orderly stop."""
        life = self._lifecycle
        self._do(life.begin())
        was = Phase.STARTING
        while life.phase is not Phase.ENDED:
            now = time.monotonic()
            self._monitor.connect(now)
            self._bring_up_to_date(now)
            self._ray.bring_up_to_date()
            ready = self._loop.wait(min(life.wakes_at, self._monitor.retry_at, self._others.retry_at, self._ray.retry_at) - now)
            self._do(life.clock(time.monotonic()))
            self._do(self._ray.judge(time.monotonic()))
            for callback in ready:
                callback()
            self._do(life.look_for_hangs())
            if life.phase is not was:
                was = life.phase
                self._announce(was)
        self._bring_up_to_date(time.monotonic())
        # The end is deliberate either way: a death is in the monitor's hands already, as the process's and not as the launcher's.
        os.write(self._own_write_end, b"bye\n")
        # The interpreter takes its handlers away before it exits: a request to end that comes then must not change the exit code.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        cause = life.cause
        if cause is None or cause.evidence:
            return cause
        return dataclasses.replace(cause, evidence=self._stacks.evidence_of_all())

    def _bring_up_to_date(self, now: float) -> None:
        self._monitor.state(self._lifecycle.state())
        self._others.bring_up_to_date(now)

    def _announce(self, phase: Phase) -> None:
        if phase is Phase.SERVING:
            logger.info("ready after %.2f s", time.monotonic() - self._started)
            if self._listener is not None:
                length = self._lifecycle.max_context_length()
                scheme = "https" if self._options.tls_certificate_file else "http"
                words = f"ready: {http_listener.url(self._listener, scheme=scheme)}, context length {length}"
                # On standard output alone, for people and what they start an engine from; a collector reads both.
                _say(words) if self._options.log_format == "text" else logger.info("%s", words)
        else:
            logger.info("%s", phase)

    # What happened: told to the lifecycle

    def may_register(self, process: Process, *, pid: int) -> str:
        """See ControlListener."""
        return self._lifecycle.reason_to_refuse(process, pid=pid)

    def output_of(self, process: Process) -> int | None:
        """See ControlListener."""
        return self._logs.open(process) if self._is_actor(process) else None

    def registered(self, process: Process, *, pid: int, descriptors: tuple[int, ...]) -> None:
        """See ControlListener."""
        self._monitor.process(process, pid=pid, descriptors=descriptors)
        if self._is_actor(process):
            process = self._lifecycle.known(process)
            logger.info("started %s, pid %d%s", process, pid, _again(process))
            self._stacks.forget(process)
            self._actors.add(process, pid=pid, pidfd=descriptors[1])
            self._do(self._lifecycle.started(process, pid=pid))
        self._do(self._lifecycle.registered(process))

    def said(self, process: Process, message: messages.FromProcess) -> None:
        """See ControlListener."""
        if isinstance(message, Placement | Ended):
            self._do(self._ray.said(message))
        else:
            self._do(self._lifecycle.said(process, message))

    def pipe_closed(self, process: Process, *, bye: bool) -> None:
        """See ControlListener."""
        if self._is_actor(process):
            self._reap()  # A raylet that died takes its actors along, and its death is there before theirs.
        self._do(self._lifecycle.pipe_closed(process, bye=bye))

    def _is_actor(self, process: Process) -> bool:
        return is_actor(process, self._lifecycle.ray)

    def _monitor_said(self, message: messages.FromMonitor) -> None:
        match message:
            case messages.Stored():
                self._do(self._lifecycle.monitor_stored())
            case messages.Drain():
                logger.info("the monitor says that the replica ends")
                self._do(self._lifecycle.replica_ends())
            case messages.Resize(data=ranks_wanted):
                logger.info("the monitor asks for %d ranks", ranks_wanted)
                self._do(self._lifecycle.resized(ranks_wanted))
            case messages.Abort(ranks=ranks, cause=death):
                logger.info("the monitor asks for an end at once: ranks %s: %s", list(ranks), death.message if death else "planned")
                cause = None if death is None else termination.cause_told(death)
                self._do(self._lifecycle.asked_to_end_ranks(ranks, cause=cause))

    def _signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            for process, stopped_by in self._children.stopped_or_continued():
                self._stopped_or_continued(process, stopped_by)
            self._reap()
        else:
            logger.info("%s", signal.Signals(number).name)
            self._do(self._lifecycle.asked_to_stop())

    def _reap(self) -> None:
        for gone in self._children.reap():
            self._reaped(gone.process, gone.exit, died_first=gone.died_first)
        self._actors.orphans_reaped()

    def _actor_gone(self, process: Process, exit: Exit, died_first: bool, told: str) -> None:
        if exit == Exit() and told:
            self._do(self._lifecycle.said(process, messages.Failed(termination.UNKNOWN, told)))
        self._reaped(process, exit, died_first=died_first)

    def _stopped_or_continued(self, process: Process, stopped_by: int | None) -> None:
        if stopped_by is None:
            logger.info("%s goes on", process)
            self._lifecycle.continued(process)
        else:
            logger.warning("%s was stopped by %s", process, signal.Signals(stopped_by).name)
            self._lifecycle.stopped(process, number=stopped_by)

    def _reaped(self, process: Process, exit: Exit, *, died_first: bool) -> None:
        logger.info("%s %s", process, exit)
        if died_first:
            self._lifecycle.was_dying(process)
        self._logs.catch_up(process)
        # That its end has begun is told before that it is complete, whatever was seen first.
        if not self._control.drain(process) and process.role not in ERRANDS:
            self._do(self._lifecycle.pipe_closed(process, bye=False))
        out_of_memory = self._oom_kills.explain(exit.signal, killed_here=self._lifecycle.was_killed(process))
        evidence = self._stacks.evidence(process)
        self._do(self._lifecycle.exited(process, exit=exit, out_of_memory=out_of_memory, evidence=evidence))
        self._control.forget(process)
        self._logs.forget(process)
        if process.role == MODEL_FETCH:
            self._do(self._configure(model_search.downloaded(self._options.model, printed=self._files.fetched, exit=exit)))
        elif process.role == RAY_START:
            self._do(self._ray.start_ended(exit, evidence=evidence))

    # What was decided: done

    def _do(self, actions: list[Action]) -> None:
        asked = [action.process for action in actions if isinstance(action, Kill) and action.asked_first]
        for action in actions:
            match action:
                case FetchModel():
                    self._do(self._fetch_model())
                case StartRay():
                    self._do(self._ray.start(self._spawner.ray, address=self._address))
                case Start(processes=chosen):
                    self._do(self._start(chosen))
                case Send(process=process) | Kill(process=process) if process.member != self._options.member:
                    pass  # Another member's launcher does it: it is in its orders.
                case Report(process=process, nobody_else_can=False) if process.member != self._options.member:
                    pass  # Its own monitor is told.
                case Send(process=process, message=message):
                    self._control.send(process, message)
                case Kill(process=process, farewell=farewell):
                    if asked:
                        self._bring_up_to_date(time.monotonic())
                        self._stacks.take(asked)
                        asked = []
                    if farewell:
                        self._children.say_farewell(process)
                    self._actors.kill(process)
                case Report(process=process, message=message):
                    self._monitor.exited(process, message)

    def _fetch_model(self) -> list[Action]:
        """A model on this machine is found at once; a download gets a process of its own."""
        if not self._options.model.startswith("hf://"):
            return self._configure(model_search.on_this_machine(self._options.model))
        try:
            pid = self._spawner.download()
        except OSError as error:
            return self._lifecycle.refused(Cause(termination.EXCEPTION, f"the model's download cannot be started: {error}"))
        return self._lifecycle.started(model_search.MODEL_FETCH_PROCESS, pid=pid)

    def _configure(self, model: str | Cause) -> list[Action]:
        if isinstance(model, Cause):
            return self._lifecycle.refused(model)
        self._model_path = model
        if isinstance(self._others, LeaderLink):
            self._others.begin()
            return []
        return self._prepare()

    def _let_in(self, address: str) -> None:
        """The leader takes this member, which it sees at ``address``."""
        self._address = address
        self._do(self._prepare())

    def _prepare(self) -> list[Action]:
        try:
            config = engine_config(self._options, self._model_path, address=self._address)
            configuration.save(config, self._files.config)
        except ConfigError as error:
            return self._lifecycle.refused(model_search.refusal(error))
        except OSError as error:
            return self._lifecycle.refused(Cause(termination.EXCEPTION, f"the engine's configuration cannot be written: {error}"))
        return self._lifecycle.model_found()

    def _start(self, chosen: tuple[Process, ...]) -> list[Action]:
        actions: list[Action] = []
        for process in chosen:
            if process.member != self._options.member or self._is_actor(process):
                continue
            self._stacks.forget(process)
            try:
                pid = self._spawner.engine(process, self._ray.environment() if process.role == ACTOR_MANAGER else None)
            except OSError as error:
                return actions + self._lifecycle.not_started(process, reason=str(error))
            logger.info("started %s, pid %d%s", process, pid, _again(process))
            actions += self._lifecycle.started(process, pid=pid)
        return actions


def _again(process: Process) -> str:
    return f", incarnation {process.incarnation}" if process.incarnation > 1 else ""


def _say(words: str) -> None:
    """To whoever reads standard output. That nobody does any more is no reason to end, now or at the interpreter's last flush."""
    try:
        print(words, flush=True)
    except OSError as error:
        logger.warning("standard output takes nothing: %s", error)
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
