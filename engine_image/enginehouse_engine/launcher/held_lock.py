"""Turns the loss of a registered process's lock into a hang-up, which epoll sees, and the monitor's epoll, too.

The kernel gives a robust lock back as the first thing of its holder's end, before it releases memory, which takes 60 ms for each GB
of small pages; the death pipe closes after that. A lock can only be waited for by a thread, so there is one for each process: it
closes a pipe and ends. Invariant: the hang-up never comes before the holder has begun to die. It may never come (a kernel without
robust locks): the death pipe tells, too.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import platform
import threading
from typing import Final

from enginehouse_engine.registration import LOCK_BYTES, SOMEBODY_WAITS

logger = logging.getLogger("enginehouse.launcher")

_FUTEX: Final = {"x86_64": 202, "aarch64": 98}
"""The number of the system call; there is no function for it in the C library."""
_FUTEX_WAIT: Final = 0
_OWNER_DIED: Final = 0x4000_0000


def hang_up_at_loss(lock: int) -> int | None:
    """The read end of a pipe that closes when the holder of ``lock``, a memory file, begins to die.

    None when nobody holds it, this machine's system calls are not known, or the container's limit of threads is reached. Raises
    ValueError for a file that is no lock. The descriptor stays the caller's.
    """
    try:
        sealed = fcntl.fcntl(lock, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        memory = mmap.mmap(lock, LOCK_BYTES)
    except (OSError, ValueError) as error:
        raise ValueError(f"the third descriptor is no memory file with a lock in it: {error}") from error
    if not sealed:
        raise ValueError("the memory file of a lock has to be sealed against shrinking")
    number = _FUTEX.get(platform.machine())
    word = ctypes.c_uint32.from_buffer(memory)
    if number is None or not word.value & SOMEBODY_WAITS:
        return None
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        threading.Thread(target=_wait, args=(number, word, write_end), name="held-lock", daemon=True).start()
    except RuntimeError as error:
        # One process comes too much: that must not end the launcher, and the others with it.
        logger.error("a lock cannot be waited for: %s", error)
        os.close(read_end)
        os.close(write_end)
        return None
    return read_end


def _wait(number: int, word: ctypes.c_uint32, write_end: int) -> None:
    address = ctypes.c_void_p(ctypes.addressof(word))
    libc = ctypes.CDLL(None, use_errno=True)
    while not (value := word.value) & _OWNER_DIED:
        done = libc.syscall(ctypes.c_long(number), address, ctypes.c_int(_FUTEX_WAIT), ctypes.c_uint32(value), None)
        if done != 0 and ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            # Its pipe tells; closing this one now would tell a death that is none.
            logger.error("a lock cannot be waited for: %s", os.strerror(ctypes.get_errno()))
            return
    os.close(write_end)
