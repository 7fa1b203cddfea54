"""How a process ended that is no child of this one, asked of the kernel by its pidfd (pidfd_open(2), ``PIDFD_GET_INFO``).

Invariant: what is told is the kernel's word, or nothing. Kernels before 6.15 do not keep it, and none does before the process's
own parent has reaped it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from enginehouse_engine.launcher.termination import Exit

_BYTES: Final = 64
"""The first version of ``struct pidfd_info``: the kernel fills in as much as there is room for."""
_GET_INFO: Final = (3 << 30) | (_BYTES << 16) | (0xFF << 8) | 11
_WANTS_EXIT: Final = 1 << 3
_EXIT_AT: Final = 60


def exit_of(pidfd: int) -> Exit | None:
    """None where the kernel does not say, or not yet."""
    info = bytearray(struct.pack("Q", _WANTS_EXIT).ljust(_BYTES, b"\0"))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    (told,) = struct.unpack_from("Q", info)
    (status,) = struct.unpack_from("i", info, _EXIT_AT)
    if not told & _WANTS_EXIT:
        return None
    return Exit(signal=os.WTERMSIG(status)) if os.WIFSIGNALED(status) else Exit(exit_code=os.WEXITSTATUS(status))
