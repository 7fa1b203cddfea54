"""One engine from its options to its exit code: what is there before the launcher's loop, and what is said after it.

Invariant: whatever this process made outside its memory is gone when it exits, also by a mistake of its own.
Starts and watches nobody: ``launch.py`` does.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

from enginehouse_engine import log_format
from enginehouse_engine.launcher import children, command_lines, http_listener, termination
from enginehouse_engine.launcher.launch import Launcher
from enginehouse_engine.launcher.logs import Logs
from enginehouse_engine.launcher.member_links import MEMBERS_PORT, own_name
from enginehouse_engine.launcher.spawner import CommandLine
from enginehouse_engine.launcher.termination import Cause
from enginehouse_engine.options import Options

logger = logging.getLogger("enginehouse.launcher")

_LONGEST_PARENT_BYTES: Final = 20
"""Leaves 87 bytes for this folder's name and for the sockets in it: Ray's longest takes all of them."""


def launch(options: Options, *, command_line: CommandLine = command_lines.command_line) -> int:
    """Run one engine until it ends; the exit code of this process. ``command_line`` says how a process is started."""
    started = time.monotonic()
    if options.log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(log_format.Json("launcher"))
    children.become_reaper()
    children.raise_descriptor_limit()
    try:
        # A member that is not the leader listens nowhere.
        listener = None if options.member else http_listener.bind(options.host, options.port)
        door = http_listener.bind(own_name(options.leader), MEMBERS_PORT) if _has_a_door(options) else None
        run_directory = make_run_directory()
    except http_listener.BindError as error:
        return end(error.cause)
    except OSError as error:
        return end(Cause(termination.EXCEPTION, f"there is no folder for the engine's files: {error}"))
    logs = Logs(json=options.log_format == "json")
    logs.start()
    try:
        launcher = Launcher(
            options,
            listener=listener,
            door=door,
            run_directory=run_directory,
            command_line=command_line,
            started=started,
            logs=logs,
        )
        return end(launcher.run())
    finally:
        children.kill_leftovers()
        logs.close()
        shutil.rmtree(run_directory, ignore_errors=True)


def _has_a_door(options: Options) -> bool:
    """With Ray members may come later, if there is a name by which they find the leader."""
    return not options.member and (options.members > 1 or (options.executor == "Ray" and bool(options.leader)))


def make_run_directory() -> Path:
    """A fresh folder, open to this user alone, for sockets and configuration. The path of a UNIX socket has at most 107 bytes."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="enginehouse-", dir=usual if len(os.fsencode(usual)) <= _LONGEST_PARENT_BYTES else "/tmp"))


def end(cause: Cause | None) -> int:
    """Say why the engine ends, in the log and to the kubelet; the launcher's exit code."""
    if cause is not None:
        termination.write_termination_log(cause)
        logger.error("the engine ends: %s: %s", cause.kind, cause.message)
    return termination.exit_code(cause)
