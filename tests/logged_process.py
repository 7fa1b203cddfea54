"""A process whose output is in a file: waits for what it says, and for its end, with a deadline that shows the whole log.

Starts and ends nothing: whoever does gives ``process`` and ``log``.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_EXIT_SECONDS = 180.0


class LoggedProcess:
    """Whoever derives from it starts it."""

    process: subprocess.Popen[Any]
    log: Path
    patience_seconds = 60.0

    def text(self) -> str:
        return self.log.read_text()

    def until(self, pattern: str) -> re.Match[str]:
        """The first match in the log."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            is_over = self.process.poll() is not None or time.monotonic() >= deadline
            if found := re.search(pattern, self.text(), re.MULTILINE):
                return found
            assert not is_over, f"{pattern!r} is not there (exit code {self.process.poll()}): {self.text()}"
            time.sleep(0.02)


@contextlib.contextmanager
def watched(pid: int) -> Iterator[Callable[[], bool]]:
    """Tells whether the process has exited, waiting for it; also of processes that are not our children."""
    pidfd = os.pidfd_open(pid)
    yield lambda: bool(select.select([pidfd], [], [], _EXIT_SECONDS)[0])
    os.close(pidfd)
