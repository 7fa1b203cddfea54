"""Ray on this machine: a head and more nodes, each as a pod would have it, with ports that are free."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from enginehouse_engine.launcher import ray_node

START_SECONDS = 90.0


class RayNodes:
    """One cluster; every node has a member's number, a run directory and, if wanted, accelerators."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.address = ""
        self._groups: dict[int, int] = {}

    def start(self, member: int, *, accelerators: int) -> None:
        """A node; the first one is the head."""
        is_head, directory = not self.address, self.run_directory(member)
        role = ["--head", "--port=0", "--include-dashboard=false", "--no-monitor"] if is_head else [f"--address={self.address}"]
        directory.mkdir()
        temporary = self.folder / f"n{member}"
        started = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", *role),
                *("--include-log-monitor=false", "--disable-usage-stats", "--num-cpus=1", "--num-gpus=0"),
                f"--labels={ray_node.MEMBER_LABEL}={member}",
                f"--node-name=pod-{member}",
                f"--resources={json.dumps({ray_node.ACCELERATOR: accelerators} if accelerators else {})}",
                f"--object-store-memory={ray_node.OBJECT_STORE_BYTES}",
                f"--temp-dir={temporary}",
            ],
            env={
                **ray_node.environment(os.environ, run_directory=directory, token_file=None, is_head=is_head),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._groups[member] = started.pid
        output, _ = started.communicate(timeout=START_SECONDS)
        assert started.returncode == 0, output.decode()
        self.address = self.address or (temporary / "ray_current_cluster").read_text().strip()

    def run_directory(self, member: int) -> Path:
        """What an actor in that node knows of its pod."""
        return self.folder / f"run-{member}"

    def stop(self, member: int) -> None:
        """At once, like a lost pod. All that `ray start` leaves is in its process group; actors die with their raylet."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._groups.pop(member), signal.SIGKILL)

    def close(self) -> None:
        """All of it."""
        for member in sorted(self._groups, reverse=True):
            self.stop(member)
        shutil.rmtree(self.folder, ignore_errors=True)
