"""Files of shared memory without a name: nothing is left behind, whoever is killed when.

They are made in the pod's shared-memory volume with O_TMPFILE (never linked into a folder) and passed on as descriptors; the
last process that has one open or mapped frees them by ending. All of a file is allocated when it is made: a volume that is too
small is an error then, and not a SIGBUS at the first message that reaches its end.

Invariant: pages outlive descriptors: a mapping stays valid until it is closed.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Final

from enginehouse_engine.message_queue.errors import SharedMemoryTooSmall

_FOLDER: Final = "/dev/shm"


def allocate(size_bytes: int, *, purpose: str) -> int:
    """A descriptor of a nameless file of this size, readable and writable. Raises SharedMemoryTooSmall."""
    descriptor = os.open(_FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise
        volume = os.statvfs(_FOLDER)
        raise SharedMemoryTooSmall(
            f"{purpose} needs {size_bytes} bytes in {_FOLDER}, found {volume.f_bavail * volume.f_frsize} of "
            f"{volume.f_blocks * volume.f_frsize} free; make the volume larger (in a pod: the memory-backed volume at {_FOLDER})"
        ) from error
    return descriptor


def reopen_read_only(descriptor: int) -> int:
    """A second descriptor of the same file through which nobody can write to it."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def map_shared(descriptor: int, size_bytes: int, *, writable: bool) -> mmap.mmap:
    return mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
