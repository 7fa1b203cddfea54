"""Why the engine ended: the cause of the first death, the launcher's exit code and the container's termination message.

Invariant: exit code 0 only without a cause. Does not decide what is a death: ``lifecycle.py`` does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from enginehouse_engine.launcher.messages import Death, Failed
from enginehouse_engine.launcher.process import Process

logger = logging.getLogger("enginehouse.launcher")

SIGNAL: Final = "Signal"
OUT_OF_MEMORY: Final = "OutOfMemory"
EXIT_CODE: Final = "ExitCode"
EXCEPTION: Final = "Exception"
DEVICE_ERROR: Final = "DeviceError"
"""An accelerator's: it may be broken, or held by what is left of its last user. Not out of memory."""
STARTUP_TIMEOUT: Final = "StartupTimeout"
HANG: Final = "Hang"
LOST: Final = "Lost"
"""Its pod is silent: nobody there can say what has become of it."""
UNKNOWN: Final = "Unknown"
"""Nobody has said why: a rank is dead elsewhere, as a monitor tells, or an actor is gone on a kernel that does not say how."""
INVALID_CONFIG: Final = "InvalidConfig"
MODEL_NOT_FOUND: Final = "ModelNotFound"
CONTEXT_TOO_SMALL: Final = "ContextTooSmall"

TRYING_AGAIN_CANNOT_HELP: Final = 78
"""``EX_CONFIG`` of ``sysexits.h``."""

_CANNOT_HELP: Final = frozenset({INVALID_CONFIG, MODEL_NOT_FOUND, CONTEXT_TOO_SMALL})
_TERMINATION_LOG: Final = Path("/dev/termination-log")
_TERMINATION_LOG_BYTES: Final = 4096


@dataclass(frozen=True)
class Exit:
    """What the kernel said about an exit: one of the two is set, or none where it said nothing."""

    exit_code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self == Exit():
            return "is gone"
        if self.signal is None:
            return f"exited with code {self.exit_code}"
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        return f"was killed by {name}"


@dataclass(frozen=True)
class Cause:
    """``kind`` is the ``class`` of the wire protocol; the identity is absent when no process is to blame."""

    kind: str
    message: str
    process: Process | None = None
    pid: int | None = None
    exit: Exit = Exit()
    evidence: str = ""
    """What the process wrote last, and where the survivors of its rank were; for people."""

    def fields(self) -> dict[str, Any]:
        """The termination message of ``docs/wire-protocol.md`` section 1."""
        evidence = {"evidence": self.evidence} if self.evidence else {}
        return {
            "class": self.kind,
            "message": self.message,
            "role": self.process.role if self.process else "launcher",
            "rank": self.process.rank if self.process else None,
            "incarnation": self.process.incarnation if self.process else None,
            "pid": self.pid,
            "exitCode": self.exit.exit_code,
            "signal": self.exit.signal,
            **evidence,
        }


def death_of(cause: Cause | None) -> Death | None:
    """For those who are told by another launcher."""
    return None if cause is None else msgspec.convert(cause.fields(), Death)


def cause_told(death: Death) -> Cause:
    """What another launcher, or the monitor, has told."""
    named = None
    if death.incarnation is not None:
        named = Process(role=death.role, rank=death.rank, index=0, incarnation=death.incarnation)
    exit = Exit(exit_code=death.exit_code, signal=death.signal)
    return Cause(kind=death.kind, message=death.message, process=named, pid=death.pid, exit=exit)


def cause_of(process: Process, *, pid: int, exit: Exit, failed: Failed | None, out_of_memory: bool) -> Cause:
    """Why ``process`` died. ``failed`` is its last word, if it came so far."""
    if exit.signal is not None:
        if out_of_memory and exit.signal == signal.SIGKILL:
            kind, message = OUT_OF_MEMORY, f"{process} was killed by the kernel: the container's memory limit was reached"
        else:
            kind, message = SIGNAL, f"{process} {exit}"
    elif failed is not None:
        kind, message = failed.cause, f"{process}: {failed.message}"
    elif exit.exit_code == TRYING_AGAIN_CANNOT_HELP:
        kind, message = INVALID_CONFIG, f"{process} {exit}: its last log lines say why"
    elif exit.exit_code == 0:
        kind, message = EXIT_CODE, f"{process} {exit} although nobody asked it to"
    elif exit.exit_code is None:
        kind, message = UNKNOWN, f"{process} is gone, and nobody has said how it ended"
    else:
        kind, message = EXIT_CODE, f"{process} {exit}"
    return Cause(kind=kind, message=message, process=process, pid=pid, exit=exit)


def timed_out(seconds: float, awaited: list[str]) -> Cause:
    """The engine, or a unit that comes back, was not ready in time."""
    return Cause(STARTUP_TIMEOUT, f"not ready after {seconds:g} s, waiting for: {'; '.join(awaited)}")


def exit_code(cause: Cause | None) -> int:
    """The launcher's own exit code."""
    if cause is None:
        return 0
    if cause.kind in _CANNOT_HELP:
        return TRYING_AGAIN_CANNOT_HELP
    if cause.exit.signal is not None:
        return 128 + cause.exit.signal
    return 1


def termination_message(cause: Cause, *, limit_bytes: int = _TERMINATION_LOG_BYTES) -> bytes:
    """JSON of at most ``limit_bytes``, since the kubelet cuts what is longer."""
    return json.dumps(shortened(cause.fields(), limit_bytes=limit_bytes)).encode()


def shortened(fields: dict[str, Any], *, limit_bytes: int) -> dict[str, Any]:
    """At most so long as JSON. Evidence gives way before the message; of both the end is kept: it says what."""
    fields = dict(fields)
    for key in ("evidence", "message"):
        text = fields.get(key, "")
        kept = len(text)
        while len(json.dumps(fields).encode()) > limit_bytes and kept:
            kept = kept * 3 // 4
            fields[key] = "…" + text[len(text) - kept :]
    return fields


def write_termination_log(cause: Cause, path: Path = _TERMINATION_LOG) -> None:
    """Tell the kubelet. Outside a pod the file does not exist, and it is not made. Without it the exit code and the log tell."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        with os.fdopen(descriptor, "wb") as log:
            log.write(termination_message(cause))
    except (FileNotFoundError, PermissionError):
        return
    except OSError as error:
        logger.warning("the kubelet is not told why the engine ends: %s cannot be written: %s", path, error)
