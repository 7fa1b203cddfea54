"""What every process of the engine does at its start and at its end: API server, engine core and worker alike.

Start: read what the launcher says, leave Ctrl-C to the launcher, log to standard error, register. End: a planned one says
``bye`` and has exit code 0; every other is told to the launcher with its class and its text, and has another code.

Invariant: ``log_format.py``, ``registration.py`` and the standard library only, so that a process is registered before anything
heavy is imported: what it runs, it imports itself. Does not know roles.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from enginehouse_engine import log_format
from enginehouse_engine.registration import LauncherGone, Registration, RegistrationError, register

logger = logging.getLogger("enginehouse.process")

EXIT_FAILED: Final = 1
EXIT_HOPELESS: Final = 78
"""Trying again cannot help."""

_HOPELESS: Final = frozenset({"InvalidConfig", "ModelNotFound", "ContextTooSmall"})
_REGISTER_SECONDS: Final = 30.0

# torch's own classes are told by their names, and its libraries' errors by their text, to leave torch out of processes that do
# without it.
_OUT_OF_MEMORY_TYPES: Final = frozenset({"MemoryError", "OutOfMemoryError"})
_DEVICE_ERROR_TYPES: Final = frozenset({"AcceleratorError", "DistBackendError"})
_DEVICE_ERROR: Final = re.compile(r"\b(CUDA|HIP|XPU|cuDNN|MIOpen|NCCL|RCCL) [Ee]rror\b|\bCUBLAS_STATUS_|\bHIPBLAS_STATUS_")
_OUT_OF_DEVICE_MEMORY: Final = re.compile(r"out of memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)
_PEER_IS_GONE: Final = re.compile(r"ncclRemoteError|remote peer|remote process")
"""NCCL's words for another process's death: no accelerator is to blame."""


class Stopped(Exception):
    """The launcher said ``stop`` to a process that has nothing to end in order yet: a planned end."""


@dataclass(frozen=True)
class Failure:
    """Why a process ends: ``kind`` is the ``class`` of the wire protocol."""

    kind: str
    message: str

    @property
    def exit_code(self) -> int:
        return EXIT_HOPELESS if self.kind in _HOPELESS else EXIT_FAILED


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """With what every process is told; the caller adds its own."""
    arguments = argparse.ArgumentParser(prog=module, description=description)
    arguments.add_argument("--launcher-socket", required=True)
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--incarnation", type=int, default=1)
    arguments.add_argument("--drill", action="append", default=[], help="as of the launcher; its role is this process's")
    return arguments


def run(
    serve: Callable[[Registration], None],
    arguments: argparse.Namespace,
    *,
    role: str,
    rank: int | None,
    index: int,
    name: str,
    last_words: Callable[[Failure], None] = lambda failure: None,
) -> int:
    """Register, ``serve``, and say how it ended; the exit code. ``name`` is for the log.

    ``last_words`` tells others than the launcher of a failure, after the launcher: who is told first is whom it blames.
    """
    # Ctrl-C in a terminal reaches the whole process group; the launcher alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format=log_format.text(name), stream=sys.stderr)
    try:
        registration = register(
            arguments.launcher_socket,
            role=role,
            rank=rank,
            index=index,
            incarnation=arguments.incarnation,
            deadline_seconds=_REGISTER_SECONDS,
        )
    except RegistrationError as error:
        logger.error("%s", error)
        return EXIT_FAILED
    if arguments.drill:
        from enginehouse_engine.drilled_registration import DrilledRegistration

        registration = DrilledRegistration(registration, arguments.drill)
    try:
        serve(registration)
    except Stopped:
        logger.info("stopped before it served")
    except LauncherGone as error:
        logger.error("%s", error)
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the top of a process: every cause is logged once and said to the launcher
        failure = failure_of(error)
        _tell(registration, failure)
        last_words(failure)
        return failure.exit_code
    registration.bye()
    return 0


def failure_of(error: Exception) -> Failure:
    """Its class is the exception's own word (``failure_class``) where it has one. No traceback where only people can help."""
    kind = getattr(error, "failure_class", None) or _kind_of(error)
    return Failure(kind, str(error) if kind in _HOPELESS else "".join(traceback.format_exception(error)))


def _kind_of(error: Exception) -> str:
    names, text = {kind.__name__ for kind in type(error).__mro__}, str(error)
    if names & _OUT_OF_MEMORY_TYPES:
        return "OutOfMemory"
    if not names & _DEVICE_ERROR_TYPES and not _DEVICE_ERROR.search(text):
        return "Exception"
    if _OUT_OF_DEVICE_MEMORY.search(text):
        return "OutOfMemory"
    return "Exception" if _PEER_IS_GONE.search(text) else "DeviceError"


def _tell(registration: Registration, failure: Failure) -> None:
    logger.error("%s: %s", failure.kind, failure.message)
    try:
        registration.failed(failure.kind, failure.message)
    except RegistrationError as gone:
        logger.error("the launcher could not be told: %s", gone)
