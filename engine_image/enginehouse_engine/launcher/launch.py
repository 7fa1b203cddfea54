"""The launcher's story: bind, tell the monitor, find the model, start, watch, end.

One thread that sleeps in epoll. What happened goes to ``lifecycle.py``, which decides; what it returns is done here.
Invariant: between two sleeps everything that was decided is done, and the monitor's picture is brought up to date.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from enginehouse_engine import config as configuration
from enginehouse_engine import registration
from enginehouse_engine.config import ConfigError
from enginehouse_engine.flags import Options
from enginehouse_engine.launcher import (
    cgroup,
    children,
    command_lines,
    http_listener,
    messages,
    replica,
    termination,
)
from enginehouse_engine.launcher.actions import Action, FetchModel, Kill, Report, Send, Start
from enginehouse_engine.launcher.command_lines import HTTP_DESCRIPTOR, RunFiles
from enginehouse_engine.launcher.control import ControlServer
from enginehouse_engine.launcher.engine_config import engine_config
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.leader_link import LeaderLink
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.member_links import MEMBERS_PORT, MemberLinks, own_name
from enginehouse_engine.launcher.monitor_link import MonitorLink
from enginehouse_engine.launcher.phase import Phase
from enginehouse_engine.launcher.process import API_SERVER, MODEL_FETCH, Process
from enginehouse_engine.launcher.termination import Cause, Exit

logger = logging.getLogger("enginehouse.launcher")

_MODEL_FETCH = Process(role=MODEL_FETCH, rank=None, index=0, incarnation=1)

_LONGEST_PARENT_BYTES: Final = 40
"""Leaves 67 bytes for this folder's name and for the sockets in it; the longest take 51."""

CommandLine = Callable[[Process, RunFiles], list[str]]


def launch(options: Options, *, command_line: CommandLine = command_lines.command_line) -> int:
    """Run one engine until it ends; the exit code of this process. ``command_line`` says how a process is started."""
    started = time.monotonic()
    children.become_reaper()
    children.raise_descriptor_limit()
    try:
        # A member that is not the leader listens nowhere.
        listener = None if options.member else http_listener.bind(options.host, options.port)
        door = http_listener.bind(own_name(options.leader), MEMBERS_PORT) if options.members > 1 and not options.member else None
    except http_listener.BindError as error:
        return end(error.cause)
    run_directory = make_run_directory()
    try:
        launcher = Launcher(
            options, listener=listener, door=door, run_directory=run_directory, command_line=command_line, started=started
        )
        return end(launcher.run())
    finally:
        shutil.rmtree(run_directory, ignore_errors=True)


def make_run_directory() -> Path:
    """A fresh folder, open to this user alone, for sockets and configuration. The path of a UNIX socket has at most 107 bytes."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="enginehouse-", dir=usual if len(os.fsencode(usual)) <= _LONGEST_PARENT_BYTES else "/tmp"))


def end(cause: Cause | None) -> int:
    """Say why the engine ends, in the log and to the kubelet; the launcher's exit code."""
    if cause is not None:
        logger.error("the engine ends: %s: %s", cause.kind, cause.message)
        termination.write_termination_log(cause)
    return termination.exit_code(cause)


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
    ) -> None:
        """``listener`` is for the clients, ``door`` for the other members; only the leader has them."""
        self._options = options
        self._listener = listener
        self._command_line = command_line
        self._started = started
        self._files = RunFiles(
            launcher_socket=run_directory / "launcher.sock",
            config=run_directory / "config.json",
            fetched=run_directory / "fetched.json",
        )
        self._own_pipe, self._own_write_end = registration.open_death_pipe()
        self._children = children.Children()
        self._oom_kills = cgroup.OomKills()
        self._loop = EventLoop()
        # A terminal that goes away ends the engine in order, but not one that was started with nohup.
        hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        self._loop.watch_signals((signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, *hang_up), self._signal)
        self._control = ControlServer(self._loop, self._files.launcher_socket, self)
        self._model_path = ""
        self._address = door.getsockname()[0] if door else ""
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

    def run(self) -> Cause | None:
        """Until the last process is reaped; why, or None after an orderly stop."""
        life = self._lifecycle
        self._do(life.begin())
        was = Phase.STARTING
        while life.phase is not Phase.ENDED:
            now = time.monotonic()
            self._monitor.connect(now)
            self._monitor.state(life.state())
            self._others.bring_up_to_date(now)
            ready = self._loop.wait(min(life.deadline, self._monitor.retry_at, self._others.retry_at) - now)
            self._do(life.clock(time.monotonic()))
            for callback in ready:
                callback()
            if life.phase is not was:
                was = life.phase
                self._announce(was)
        self._monitor.state(life.state())
        self._others.bring_up_to_date(time.monotonic())
        self._children.kill_leftovers()
        # The end is deliberate either way: a death is in the monitor's hands already, as the process's and not as the launcher's.
        os.write(self._own_write_end, b"bye\n")
        return life.cause

    def _announce(self, phase: Phase) -> None:
        if phase is Phase.SERVING:
            logger.info("ready after %.2f s", time.monotonic() - self._started)
            if self._listener is not None:
                length = self._lifecycle.max_context_length()
                print(f"ready: {http_listener.url(self._listener)}, context length {length}", flush=True)
        else:
            logger.info("%s", phase)

    # What happened: told to the lifecycle

    def may_register(self, process: Process, *, pid: int) -> str:
        """See ControlListener."""
        return self._lifecycle.may_register(process, pid=pid)

    def registered(self, process: Process, *, pid: int, read_end: int, pidfd: int) -> None:
        """See ControlListener."""
        self._monitor.process(process, pid=pid, read_end=read_end, pidfd=pidfd)
        self._do(self._lifecycle.registered(process))

    def said(self, process: Process, message: messages.FromProcess) -> None:
        """See ControlListener."""
        self._do(self._lifecycle.said(process, message))

    def pipe_closed(self, process: Process, *, bye: bool) -> None:
        """See ControlListener."""
        self._do(self._lifecycle.pipe_closed(process, bye=bye))

    def _monitor_said(self, message: messages.FromMonitor) -> None:
        match message:
            case messages.Stored():
                self._do(self._lifecycle.monitor_stored())
            case messages.Drain(timeout_seconds=seconds):
                logger.info("the monitor asks for an end within %g s", seconds)
                self._do(self._lifecycle.asked_to_stop(timeout_seconds=seconds))
            case messages.Abort(ranks=ranks):
                logger.info("the monitor asks for an end at once: ranks %s", list(ranks))
                self._do(self._lifecycle.asked_to_end_ranks(ranks))

    def _signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            for process, exit in self._children.reap():
                self._reaped(process, exit)
        else:
            logger.info("%s", signal.Signals(number).name)
            self._do(self._lifecycle.asked_to_stop())

    def _reaped(self, process: Process, exit: Exit) -> None:
        logger.info("%s %s", process, exit)
        self._control.drain(process)
        out_of_memory = self._oom_kills.explain(exit.signal, killed_here=self._lifecycle.was_killed(process))
        self._do(self._lifecycle.exited(process, exit=exit, out_of_memory=out_of_memory))
        self._control.forget(process)
        if process.role == MODEL_FETCH:
            self._do(self._fetch_ended(exit))

    # What was decided: done

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case FetchModel():
                    self._do(self._fetch_model())
                case Start(processes=chosen):
                    self._do(self._start(chosen))
                case Send(process=process) | Kill(process=process) if process.member != self._options.member:
                    pass  # Another member's launcher does it: it is in its orders.
                case Report(process=process) if process.member != self._options.member:
                    pass  # Its own monitor is told.
                case Send(process=process, message=message):
                    self._control.send(process, message)
                case Kill(process=process):
                    if self._children.kill(process):
                        self._lifecycle.was_dying(process)
                case Report(process=process, message=message):
                    self._monitor.exited(process, message)

    def _fetch_model(self) -> list[Action]:
        """A model on this machine is found at once; a download gets a process of its own."""
        if not self._options.model.startswith("hf://"):
            return self._found(self._options.model)
        argv = command_lines.model_fetch_command_line(
            self._options.model, revision=self._options.revision, cache_dir=self._options.model_cache_dir
        )
        with self._files.fetched.open("wb") as output:
            pid = self._children.spawn(_MODEL_FETCH, argv, descriptors={1: output.fileno()})
        return self._lifecycle.started(_MODEL_FETCH, pid=pid)

    def _fetch_ended(self, exit: Exit) -> list[Action]:
        try:
            answer = json.loads(self._files.fetched.read_bytes())
        except ValueError:
            answer = {
                "class": termination.EXCEPTION,
                "message": f"the download of {self._options.model} {exit}: its last log lines say why",
            }
        if "path" in answer:
            return self._configure(answer["path"])
        return self._lifecycle.refused(Cause(kind=answer["class"], message=answer["message"], process=_MODEL_FETCH, exit=exit))

    def _found(self, uri: str) -> list[Action]:
        if not uri:
            return self._configure("")
        from enginehouse_engine import model_source

        try:
            return self._configure(str(model_source.resolve(uri)))
        except ConfigError as error:
            return self._lifecycle.refused(_refusal(error))
        except OSError as error:
            return self._lifecycle.refused(Cause(termination.EXCEPTION, f"{uri} cannot be read: {error}"))

    def _configure(self, model_path: str) -> list[Action]:
        self._model_path = model_path
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
        except ConfigError as error:
            return self._lifecycle.refused(_refusal(error))
        configuration.save(config, self._files.config)
        return self._lifecycle.model_found()

    def _start(self, chosen: tuple[Process, ...]) -> list[Action]:
        actions: list[Action] = []
        for process in chosen:
            if process.member != self._options.member:
                continue
            descriptors = {HTTP_DESCRIPTOR: self._listener.fileno()} if process.role == API_SERVER and self._listener else {}
            try:
                pid = self._children.spawn(
                    process,
                    self._command_line(process, self._files),
                    descriptors=descriptors,
                    environment=command_lines.environment(process, os.environ),
                )
            except OSError as error:
                return actions + self._lifecycle.not_started(process, reason=str(error))
            again = f", incarnation {process.incarnation}" if process.incarnation > 1 else ""
            logger.info("started %s, pid %d%s", process, pid, again)
            actions += self._lifecycle.started(process, pid=pid)
        return actions


def _refusal(error: ConfigError) -> Cause:
    return Cause(kind=getattr(error, "failure_class", termination.INVALID_CONFIG), message=str(error))
