"""The real launcher in a process of its own, with stand-ins for the engine's processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DEADLINE_SECONDS = 90.0
RUN_LAUNCHER = Path(__file__).parent / "unit/launcher/run_launcher.py"


class Launched:
    """One life of a launcher; its standard error is in a file."""

    def __init__(self, folder: Path, behaviours: dict[str, str], *flags: str) -> None:
        self.log = folder / f"launcher-{len(list(folder.iterdir()))}.log"
        self.temporary = Path(tempfile.mkdtemp(prefix="test-"))  # short, as a socket's path has to be
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(self.temporary)}
        command = [
            sys.executable,
            str(RUN_LAUNCHER),
            json.dumps(behaviours),
            *("--port", "0"),
            *(() if "--executor" in flags else ("--executor", "Simulated")),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *flags], env=environment, stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True
            )

    def ready(self) -> str:
        """The line that says so, when the core is at work, too: the stand-in of an API server does not wait for it."""
        self.until("was given")
        return self.output()

    def output(self) -> str:
        """The one line that it prints."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], DEADLINE_SECONDS)[0], self.text()
        line = self.process.stdout.readline()
        assert line.startswith("ready: "), self.text()
        return str(line)

    def wait(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def text(self) -> str:
        return self.log.read_text()

    def until(self, pattern: str) -> re.Match[str]:
        """The first match in the log."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := re.search(pattern, self.text())) is None:
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self.text()}"
            assert self.process.poll() is None or re.search(pattern, self.text()), f"ended without {pattern!r}: {self.text()}"
            time.sleep(0.01)
        return found

    def pid(self, name: str, *, incarnation: int = 1) -> int:
        """Of a child; the launcher logs it."""
        again = f", incarnation {incarnation}" if incarnation > 1 else ""
        return int(self.until(rf"started {re.escape(name)}, pid (\d+){again}\n")[1])


@contextlib.contextmanager
def watched(pid: int) -> Iterator[Callable[[], bool]]:
    """Tells whether the process has exited, waiting up to the deadline; also of processes that are not our children."""
    pidfd = os.pidfd_open(pid)
    yield lambda: bool(select.select([pidfd], [], [], DEADLINE_SECONDS)[0])
    os.close(pidfd)
