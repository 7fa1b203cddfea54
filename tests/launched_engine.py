"""The real launcher in a process of its own, with stand-ins for the engine's processes."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tempfile
from pathlib import Path

from logged_process import LoggedProcess

DEADLINE_SECONDS = 90.0
RUN_LAUNCHER = Path(__file__).parent / "unit/launcher/run_launcher.py"


class Launched(LoggedProcess):
    """One life of a launcher; its standard error is in a file."""

    patience_seconds = DEADLINE_SECONDS

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

    def pid(self, name: str, *, incarnation: int = 1) -> int:
        """Of a child; the launcher logs it."""
        again = f", incarnation {incarnation}" if incarnation > 1 else ""
        return int(self.until(rf"started {re.escape(name)}, pid (\d+){again}\n")[1])
