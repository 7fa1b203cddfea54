"""Advisory locks between processes.

The one job: exclusive sections across processes that end when their holder dies, however it dies.
The invariant kept: every wait has a deadline and says what it waited for.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import LocalkubeError

_POLL_SECONDS = 0.05  # flock has no timed wait


def try_lock(path: Path) -> int | None:
    """Take the lock now and return its descriptor, or None when somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def locked(path: Path, *, timeout_seconds: float, wanted: str) -> Iterator[None]:
    """Hold the lock while inside; `wanted` says for what, should the wait end."""
    deadline = time.monotonic() + timeout_seconds
    while (descriptor := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise LocalkubeError(f"{wanted}: another process has held {path} for {timeout_seconds:.0f} s; wait for it or end it")
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)
