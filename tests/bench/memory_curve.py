"""From kill -9 to the monitor's notice, over the private memory of the process that dies: 4 KiB pages and huge pages.

Where there are two CPUs or more the one that dies has one of its own: the kernel does not let others run where it frees memory, and
on a machine of two their wake-up would be what is measured.

The one job: processes that register as an engine's do (``registration.py``), the real monitor on the other end, and this module as
the launcher between them; the API is a stand-in, since nothing of it is measured. Does not know pods.
"""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pod_processes

import fake_replica_api
from enginehouse_engine.launcher.held_lock import hang_up_at_loss
from monitor_process import FakeLauncher, MonitorProcess

GIB = 1 << 30
SIZES_BYTES = (GIB // 10, GIB // 2, GIB, 2 * GIB, 4 * GIB)
PAGES = ("small", "huge")
SPARE_BYTES = 2 * GIB
"""That must stay free beside the largest process."""
_WAIT_SECONDS = 60.0
_HOLDER = Path(__file__).with_name("memory_holder.py")


def measure(rows: list[dict[str, Any]], *, kills: int) -> None:
    """Append one row for each kill, so many for each size and kind of pages."""
    available = _available_bytes()
    sizes = [size for size in SIZES_BYTES if size + SPARE_BYTES <= available]
    if len(sizes) < len(SIZES_BYTES):
        print(f"only {available >> 20} MiB are free: sizes of {[size >> 20 for size in sizes]} MiB are measured", flush=True)
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        *others, victims = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, others or [victims])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="death-")))
        api = stack.enter_context(fake_replica_api.serve(folder))
        monitor = MonitorProcess(
            folder, host="127.0.0.1", port=api.port, credentials=api.credentials,
            namespace="here", replica="replica", replica_uid="replica-uid",
        )  # fmt: skip
        stack.callback(monitor.terminate)
        launcher = monitor.launcher()
        stack.callback(launcher.close)
        launcher.state("Serving")
        launcher.hear()
        control = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        control.settimeout(_WAIT_SECONDS)
        control.bind(str(folder / "launcher.sock"))
        control.listen()
        for turn in range(kills):
            for pages in PAGES:
                for size in sizes:
                    number = len(rows) + 1
                    rows.append(_one_kill(api, launcher, control, folder, size=size, pages=pages, number=number, cpu=victims))
            print(f"memory curve: {turn + 1} of {kills} rounds", flush=True)


def _one_kill(
    api: fake_replica_api.FakeApi,
    launcher: FakeLauncher,
    control: socket.socket,
    folder: Path,
    *,
    size: int,
    pages: str,
    number: int,
    cpu: int,
) -> dict[str, Any]:
    """``number`` is the incarnation, so that the monitor's row tells the deaths apart."""
    command = [sys.executable, str(_HOLDER), str(folder / "launcher.sock"), str(size), pages]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment) as holder:
        os.sched_setaffinity(holder.pid, [cpu])
        connection, _ = control.accept()
        with connection:
            connection.settimeout(_WAIT_SECONDS)
            descriptors = _registered(connection)  # of which the last one is a lock, and becomes what the monitor watches
            lock = descriptors.pop()
            if (lost := hang_up_at_loss(lock)) is not None:
                descriptors.append(lost)
            os.close(lock)
            identity = {"role": "engine-core", "rank": 0, "index": 0, "incarnation": number, "pid": holder.pid}
            launcher.say({"type": "process", **identity}, *descriptors)
            if json.loads(connection.recv(4096)).get("stage") != "serve":
                raise RuntimeError("the process that holds memory said something else than that it does")
            memory = pod_processes.private_bytes(holder.pid)
            at = pod_processes.kill(descriptors[1])
            pipe_closed = pod_processes.hung_up_at(descriptors[0], seconds=_WAIT_SECONDS)
            gone = pod_processes.gone_at([descriptors[1]], seconds=_WAIT_SECONDS)
        for descriptor in descriptors:
            os.close(descriptor)
    launcher.exited(incarnation=number, pid=holder.pid)
    found: dict[str, Any] = {}

    def told(api: fake_replica_api.FakeApi) -> bool:
        failures = (api.row() or {}).get("failures", [])
        found.update(next((failure for failure in failures if failure["incarnation"] == number), {}))
        return bool(found)

    api.wait_for(told)
    noticed = datetime.fromisoformat(found["detectedTime"]).timestamp()
    return {
        "pages": pages,
        "size_bytes": size,
        **memory,
        "noticed_seconds": round(noticed - at, 6),
        "pipe_closed_seconds": round(pipe_closed - at, 6),
        "process_gone_seconds": round(gone - at, 6),
        "detected_by": found["detectedBy"],
    }


def _registered(connection: socket.socket) -> list[int]:
    """The read end and the pidfd that a process hands over."""
    _, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for _, _, payload in ancillary:
        descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    connection.send(json.dumps({"type": "registered", "message": ""}).encode())
    return list(descriptors)


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
