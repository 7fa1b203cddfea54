"""The real monitor as a process, and the launcher's side of its socket."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEADLINE_SECONDS = 20.0


class FakeLauncher:
    """Says what it is told to."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(DEADLINE_SECONDS)
        self.connection.connect(str(path))
        self.read_end, self.write_end = os.pipe()
        self.say({"type": "hello", "version": 1, "pid": os.getpid()}, self.read_end)

    def say(self, message: dict[str, Any], *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.connection.sendmsg([json.dumps(message).encode()], rights)

    def process(self, *, role: str = "engine-core", rank: int | None = 0, pid: int = 7, incarnation: int = 1) -> int:
        """Register a process; the write end of its pipe."""
        read_end, write_end = os.pipe()
        pidfd = os.pidfd_open(os.getpid())
        self.say(
            {"type": "process", "role": role, "rank": rank, "index": 0, "incarnation": incarnation, "pid": pid}, read_end, pidfd
        )
        os.close(read_end)
        os.close(pidfd)
        return write_end

    def exited(self, *, planned: bool = False, pid: int = 7, **fields: Any) -> None:
        identity = {"role": "engine-core", "rank": 0, "index": 0, "incarnation": 1, "pid": pid}
        cause = {"class": "Signal", "message": "killed", "signal": 9, "exitCode": None, "planned": planned}
        self.say({"type": "exited", **identity, **cause, **fields})

    def state(self, state: str, **rank: Any) -> None:
        self.say({"type": "state", "state": state, "ranks": [{"rank": 0, "incarnation": 1, "state": state, **rank}]})

    def hears_nothing(self) -> bool:
        """Now: what it was going to be told because of something else that is seen already."""
        return not select.select([self.connection], [], [], 0)[0]

    def hear(self) -> dict[str, Any]:
        data = self.connection.recv(65536)
        assert data, "the monitor closed the socket"
        message: dict[str, Any] = json.loads(data)
        return message

    def close(self) -> None:
        self.connection.close()
        os.close(self.read_end)
        os.close(self.write_end)


class MonitorProcess:
    """One life of the monitor."""

    def __init__(
        self,
        folder: Path,
        *,
        host: str,
        port: int,
        credentials: Path,
        namespace: str,
        replica: str,
        replica_uid: str,
        member: str = "pod-0",
        leads: bool = False,
        log_format: str = "text",
    ) -> None:
        self.socket = folder / f"{member}.sock"
        self.socket.unlink(missing_ok=True)
        arguments = [f"--socket={self.socket}", f"--namespace={namespace}", f"--replica={replica}", f"--replica-uid={replica_uid}"]
        arguments += [f"--member={member}", f"--credentials={credentials}", *(["--leads"] if leads else [])]
        arguments += [f"--log-format={log_format}"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "POD_UID": "pod-uid",
            "POD_IP": "10.0.0.7",
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": str(port),
        }
        self.log = folder / f"{member}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "enginehouse_operator.monitor", *arguments], env=environment, stderr=log
            )

    def launcher(self) -> FakeLauncher:
        """Connect as soon as the monitor listens."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                return FakeLauncher(self.socket)
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise AssertionError(self.log.read_text()) from None
                time.sleep(0.01)

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(DEADLINE_SECONDS)

    def held_pipes(self) -> int:
        """Of the engine's processes, the launcher included; the monitor's own are for signals."""
        links = []
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(os.readlink(entry))
        pipes = [link for link in links if link.startswith("pipe:")]
        return sum(pipes.count(pipe) == 1 for pipe in pipes)

    def switches(self) -> int:
        """How often its threads have gone to sleep by themselves: that is how often they were awake."""
        status = [task.read_text() for task in Path(f"/proc/{self.process.pid}/task").glob("*/status")]
        return sum(
            int(line.split()[1]) for text in status for line in text.splitlines() if line.startswith("voluntary_ctxt_switches:")
        )

    def status(self, key: str) -> int:
        """A figure of ``/proc/PID/status``."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])
