"""Operators as processes of their own, for tests: started, killed, waited for.

The one job: own every process it starts. Not done here: what an operator is asked to do (stage.py).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 60


class Zygote:
    """The process that forks operators. ``start`` gives running ones."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._exits: dict[int, int] = {}
        self._changed = threading.Condition()
        self._started: queue.Queue[int] = queue.Queue()
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> Zygote:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "operator_zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "KUBECONFIG": str(self._kubeconfig), "PYTHONPATH": str(ROOT / "operator")},
        )
        ready = threading.Event()
        threading.Thread(target=self._listen, args=(ready,), daemon=True).start()
        if not ready.wait(DEADLINE_SECONDS):
            raise TimeoutError("the zygote does not start")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_SECONDS)

    def _listen(self, ready: threading.Event) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "ready" in message:
                ready.set()
            elif "started" in message:
                with self._changed:
                    self._exits.pop(message["started"], None)  # of an earlier operator: a busy machine uses pids again
                self._started.put(message["started"])
            else:
                with self._changed:
                    self._exits[message["pid"]] = message["exit"]
                    self._changed.notify_all()

    def start(self, arguments: list[str], *, log: Path, die_after: int | None = None) -> OperatorProcess:
        assert self._process.stdin is not None
        order = {"arguments": arguments, "log": str(log), "dieAfter": die_after}
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return OperatorProcess(self, self._started.get(timeout=DEADLINE_SECONDS), log)

    def exit_code(self, pid: int, timeout_seconds: float) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: pid in self._exits, timeout_seconds)
            return self._exits.get(pid)


class OperatorProcess:
    """One operator."""

    def __init__(self, zygote: Zygote, pid: int, log: Path) -> None:
        self._zygote = zygote
        self.pid = pid
        self.log = log

    def wait(self, timeout_seconds: float = DEADLINE_SECONDS) -> int:
        code = self._zygote.exit_code(self.pid, timeout_seconds)
        if code is None:
            raise TimeoutError(f"operator {self.pid} still runs after {timeout_seconds} s: {self.log.read_text()[-3000:]}")
        return code

    @property
    def exit_code(self) -> int | None:
        return self._zygote.exit_code(self.pid, 0)

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def terminate(self) -> int:
        """SIGTERM, as the kubelet does."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    @property
    def resident_bytes(self) -> int:
        """Resident memory, shared pages included."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ValueError("no VmRSS")
