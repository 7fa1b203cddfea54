"""How each process that the launcher starts itself gets what it needs: command line, environment, descriptors, a pipe to the log.

Invariant: nothing of the launcher's is inherited but what is named here. Does not decide who is started (``lifecycle.py``), nor
spawn (``children.py``).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from enginehouse_engine.launcher import command_lines
from enginehouse_engine.launcher.children import Children
from enginehouse_engine.launcher.command_lines import HTTP_DESCRIPTOR, RunFiles
from enginehouse_engine.launcher.logs import Logs
from enginehouse_engine.launcher.model_search import MODEL_FETCH_PROCESS
from enginehouse_engine.launcher.process import API_SERVER, RAY_START, Process
from enginehouse_engine.options import Options

CommandLine = Callable[[Process, RunFiles], list[str]]


class Spawner:
    """``listener`` is for the clients; ``command_line`` says how a process is started. Raises OSError where the kernel refuses."""

    def __init__(
        self,
        options: Options,
        files: RunFiles,
        *,
        children: Children,
        logs: Logs,
        listener: socket.socket | None,
        command_line: CommandLine,
    ) -> None:
        self._options = options
        self._files = files
        self._children = children
        self._logs = logs
        self._listener = listener
        self._command_line = command_line

    def engine(self, process: Process, environment: Mapping[str, str] | None) -> int:
        """A process of the engine; its pid. ``environment`` None = the usual one."""
        argv = self._command_line(process, self._files) + command_lines.drill_flags(process, self._options.drills)
        descriptors = {HTTP_DESCRIPTOR: self._listener.fileno()} if process.role == API_SERVER and self._listener else {}
        return self._spawn(process, argv, descriptors, environment or command_lines.environment(process, os.environ))

    def download(self) -> int:
        """Of the model; what it prints goes into a file."""
        options = self._options
        argv = command_lines.model_fetch_command_line(options.model, revision=options.revision, cache_dir=options.model_cache_dir)
        with self._files.fetched.open("wb") as output:
            return self._spawn(MODEL_FETCH_PROCESS, argv, {1: output.fileno()}, os.environ)

    def ray(self, process: Process, argv: list[str], environment: Mapping[str, str]) -> int:
        """``ray start``."""
        return self._spawn(process, argv, {}, environment)

    def _spawn(self, process: Process, argv: list[str], descriptors: Mapping[int, int], environment: Mapping[str, str]) -> int:
        standard_error = self._logs.open(process)
        try:
            return self._children.spawn(
                process,
                argv,
                standard_error=standard_error,
                descriptors=descriptors,
                environment=environment,
                alone=process.role == RAY_START,
            )
        finally:
            os.close(standard_error)
