"""How the kernel says a process stands: proc(5).

Invariant: a process that is gone is one that dies. Whoever asks makes sure that the number is still that of whom he means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PF_EXITING: Final = 0x4
"""The flag of a task that is in the kernel's exit path, from include/linux/sched.h."""


def is_dying(pid: int) -> bool:
    """Has the kernel begun to take it down?"""
    fields = _stat(pid)
    return not fields or fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)


def is_stopped(pid: int) -> bool:
    """By a signal, or a debugger."""
    fields = _stat(pid)
    return bool(fields) and fields[0] in "tT"


def _stat(pid: int) -> list[str]:
    """From the state on; empty = it is gone. Its name, which comes before, is its own affair and need not be text."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
