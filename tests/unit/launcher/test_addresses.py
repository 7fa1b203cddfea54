"""Engines are started again and again, many at once, and die in parts: nobody ever meets anybody but whom the record promised."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

DEADLINE_SECONDS = 120.0
AT_ONCE = 8
RESTART_EVERY = 8
PROGRAM = Path(__file__).parents[2] / "address_process.py"
SHAPE = ("--executor=Multiprocess", "--tensor-parallel=1", "--data-parallel=2", "--api-servers=2", "--port=0")
VICTIMS = ("API server 1", "engine core of rank 1", "worker 0 of rank 1")
# A rank comes back whole, both its processes meeting each other and both API servers; an API server meets both ranks.
MET_AGAIN = {"API server 1": 2, "engine core of rank 1": 4, "worker 0 of rank 1": 4}
STALE = {
    "API server 1": {"role": "api-server", "rank": None, "index": 1},
    "engine core of rank 1": {"role": "engine-core", "rank": 1, "index": 0},
    "worker 0 of rank 1": {"role": "worker", "rank": 1, "index": 0},
}


@dataclass(frozen=True)
class Outcome:
    """Of one start."""

    exit_code: int
    met: int
    collisions: tuple[str, ...]
    refusal: str
    log: str


class OneStart:
    """An engine from start to stop; every eighth loses a process on the way."""

    def __init__(self, number: int, model: Path) -> None:
        self.victim = VICTIMS[number // RESTART_EVERY % len(VICTIMS)] if number % RESTART_EVERY == 0 else ""
        self.folder = Path(tempfile.mkdtemp(prefix="a-"))
        self.log = self.folder / "log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(self.folder)}
        flags = [*SHAPE, f"--model={model}", f"--replica-uid=replica-{number}"]
        with self.log.open("wb") as log:
            self.launcher = subprocess.Popen(
                [sys.executable, str(PROGRAM), "launch", *flags], env=environment, stdout=subprocess.PIPE, stderr=log
            )

    def run(self) -> Outcome:
        try:
            assert self.launcher.stdout is not None
            assert select.select([self.launcher.stdout], [], [], DEADLINE_SECONDS)[0], self.text()
            # Each of two ranks: core and worker meet each other, and the core both API servers.
            self.until(lambda text: len(re.findall("^met: ", text, re.M)) >= 8)
            refusal = ""
            if self.victim:
                # Who dies before it met the others is not met twice: only now is it known how many more meet.
                refusal = self.lose_one()
                self.until(lambda text: len(re.findall("^met: ", text, re.M)) >= 8 + MET_AGAIN[self.victim])
            self.launcher.terminate()
            code = self.launcher.wait(DEADLINE_SECONDS)
            text = self.text()
            return Outcome(code, len(re.findall("^met: ", text, re.M)), tuple(re.findall("COLLISION.*", text)), refusal, text)
        finally:
            self.launcher.kill()
            self.launcher.communicate()
            shutil.rmtree(self.folder, ignore_errors=True)

    def lose_one(self) -> str:
        """Kill it, wait until its unit is back, and then come as the dead one: what the launcher says to that."""
        found = re.search(rf"started {self.victim}, pid (\d+)", self.text())
        assert found, self.text()
        os.kill(int(found[1]), signal.SIGKILL)
        self.until(lambda text: re.search(rf"started {self.victim}, pid \d+, incarnation 2", text) is not None)
        identity = {**STALE[self.victim], "incarnation": 1}
        (launcher,) = self.folder.glob("enginehouse-*/launcher.sock")
        read_end, write_end = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ghost:
            ghost.settimeout(DEADLINE_SECONDS)
            ghost.connect(str(launcher))
            register = {"type": "register", "version": 1, **identity, "pid": int(found[1])}
            socket.send_fds(ghost, [json.dumps(register).encode()], [read_end, write_end])
            answer = json.loads(ghost.recv(4096))
        os.close(read_end)
        os.close(write_end)
        return f"{answer['type']}: {answer['message']}"

    def until(self, wanted: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not wanted(self.text()):
            assert time.monotonic() < deadline, self.text()
            assert self.launcher.poll() is None, self.text()
            time.sleep(0.02)

    def text(self) -> str:
        return self.log.read_text()


@pytest.mark.parametrize(
    "starts", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])], ids=["a few", "a thousand"]
)
def test_starts_at_once_never_collide_and_what_is_over_is_refused(starts: int, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b"GGUF1234")
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(lambda number: OneStart(number, model).run(), range(starts)))
    seconds = time.monotonic() - began
    restarted = [outcome for outcome in outcomes if outcome.refusal]
    met = sum(outcome.met for outcome in outcomes)
    print(f"{starts} starts, {AT_ONCE} at once, {len(restarted)} with a restart: {met} met, {seconds:.0f} s")
    assert [outcome.collisions for outcome in outcomes if outcome.collisions] == []
    assert [outcome.log for outcome in outcomes if outcome.exit_code != 0] == []
    assert len(restarted) == -(-starts // RESTART_EVERY)
    assert [outcome.refusal for outcome in restarted if "(incarnation 1), or it is over" not in outcome.refusal] == []
