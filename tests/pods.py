"""Pods without Kubernetes: each with a network, a host name and processes of its own, and the launcher as its first process.

Invariant: whatever happens to its first process, everything in a pod ends with it, and all pods with the process that made them.
Needs root.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from members import Member
from running_engine import SOURCES

DEADLINE_SECONDS = 300.0
_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class Network:
    """A switch, and for each pod a cable to it. Addresses are nobody else's business: it is a world of its own."""

    def __init__(self, pods: int) -> None:
        self._holders = [_hold("switch"), *(_hold(f"pod-{number}") for number in range(pods))]
        switch = self._holders[0].pid
        _in(switch, "ip", "link", "add", "switch", "type", "bridge")
        _in(switch, "ip", "link", "set", "switch", "up")
        for number, holder in enumerate(self._holders[1:]):
            _in(switch, *f"ip link add p{number} type veth peer name eth0 netns {holder.pid}".split())
            _in(switch, *f"ip link set p{number} master switch up".split())
            _in(holder.pid, *f"ip address add {self.address(number)}/24 dev eth0".split())
            _in(holder.pid, "ip", "link", "set", "eth0", "up")
            _in(holder.pid, "ip", "link", "set", "lo", "up")

    def address(self, number: int) -> str:
        return f"10.77.0.{number + 1}"

    def command(self, number: int) -> list[str]:
        """What a pod's first process is started with."""
        return [*_WITH_US, *_enter(self._holders[number + 1].pid), "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

    def connect(self, number: int, port: int) -> socket.socket:
        """To a port of a pod's own loopback address."""
        made: list[socket.socket] = []

        def enter() -> None:
            # A thread has a network of its own choice.
            with Path(f"/proc/{self._holders[number + 1].pid}/ns/net").open() as there:
                assert ctypes.CDLL(None).setns(there.fileno(), 0) == 0
            made.append(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return made[0]

    def close(self) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()


class Pod(Member):
    """One launcher as the first process of a pod. Numbers of processes in its log are the pod's own."""

    patience_seconds = DEADLINE_SECONDS

    def __init__(self, network: Network, number: int, log: Path, *flags: str) -> None:
        self.network, self.number, self.log = network, number, log
        self.temporary = Path(tempfile.mkdtemp(prefix="pod-", dir="/tmp"))  # short, as a socket's path has to be
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*network.command(number), sys.executable, "-m", "enginehouse_engine", *flags],
                env={**os.environ, "PYTHONPATH": str(SOURCES), "TMPDIR": str(self.temporary)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def signal(self, name: str, number: int, *, incarnation: int = 1) -> None:
        """To a process of the pod, as the launcher has it in its log."""
        again = f", incarnation {incarnation}" if incarnation > 1 else ""
        own = int(self.until(rf"(?:started|adopted) {name}, pid (\d+){again}$")[1])
        subprocess.run(["nsenter", f"--target={self.first}", "--pid", "kill", f"-{number}", str(own)], check=True, timeout=60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.temporary)

    @property
    def first(self) -> int:
        """Pid of the launcher, out here."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())

    def terminate(self) -> None:
        """As a kubelet asks it to stop."""
        os.kill(self.first, signal.SIGTERM)

    def ask(self, prompt: list[int], *, tokens: int) -> dict[str, Any]:
        """A completion, chosen greedily."""
        port = int(self.until(r"^ready: http://127.0.0.1:(\d+),")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.sock = self.network.connect(self.number, port)
        body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        found: dict[str, Any] = json.loads(text)
        return found


def _hold(name: str) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(
        [*_WITH_US, "unshare", "--net", "--uts", "sh", "-c", f"hostname {name} && echo && exec sleep infinity"],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"\n", "network namespaces need root"
    return holder


def _enter(holder: int) -> list[str]:
    return ["nsenter", f"--net=/proc/{holder}/ns/net", f"--uts=/proc/{holder}/ns/uts"]


def _in(holder: int, *command: str) -> None:
    subprocess.run([*_enter(holder), *command], check=True, timeout=60)
