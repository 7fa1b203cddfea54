"""An engine core or a worker as a Ray actor: a process like any other, that Ray has started.

Two phases: :meth:`EngineActor.where` says where it is and which devices it has; :meth:`EngineActor.run`, told that of all workers
of the rank, is the same main function that a child of the launcher runs. It registers with the launcher of the pod that it is in,
and from then on nobody needs Ray to know how it is.

Invariant: the process ends when its main function does, with that exit code, so that the kernel says of it what it says of a child;
an exception comes out of ``run`` as text, which everybody can read. What an actor knows of its pod is one folder, of which its
raylet was told.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from enginehouse_engine.launcher.process import ENGINE_CORE, WORKER, Process
from enginehouse_engine.launcher.ray_node import RUN_DIRECTORY


@dataclass(frozen=True)
class Where:
    """What an actor found out about itself."""

    node: str
    pid: int
    devices: tuple[str, ...]
    """Physical numbers of the accelerators that Ray has given it; empty = it computes on the CPU."""


class RunFailed(Exception):
    """What came out of an actor's main function, as text: the exception itself may not be readable elsewhere."""


class EngineActor:
    """Constructed by Ray. One call at a time, all on the main thread of the process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        if RUN_DIRECTORY not in os.environ:
            raise RunFailed(f"{RUN_DIRECTORY} is not set in this node: its raylet was not started by a launcher")
        self._directory = Path(os.environ[RUN_DIRECTORY])

    def where(self) -> Where:
        """The first phase."""
        context = ray.get_runtime_context()
        devices = context.get_accelerator_ids().get("GPU", [])
        return Where(node=context.get_node_id(), pid=os.getpid(), devices=tuple(devices))

    def run(self, workers: Sequence[Where]) -> None:
        """The second phase: until told to stop. ``workers``: where worker 0, 1, ... of this rank are.

        Never returns: the caller learns of the end of the process.
        """
        own = self._process
        arguments = ["--launcher-socket", str(self._directory / "launcher.sock"), "--config", str(self._directory / "config.json")]
        arguments += ["--rank", str(own.rank), "--incarnation", str(own.incarnation)]
        if own.role == WORKER:
            arguments += ["--index", str(own.index), *devices_of(workers, own.index)]
        try:
            code = self.main(arguments)
        except Exception as error:  # noqa: BLE001 - the top of a process: whatever it is, it is told
            raise RunFailed("".join(traceback.format_exception(error))) from None
        if code:
            os._exit(code)
        # Ray would end the interpreter, which waits for torch's threads; and they for workers that are gone.
        atexit.register(os._exit, 0)
        ray.actor.exit_actor()

    def main(self, arguments: list[str]) -> int:
        """What a child of the launcher runs; tests run something else."""
        sys.argv = [sys.argv[0], *arguments]
        return _main_of(self._process.role)()


def _main_of(role: str) -> Callable[[], int]:
    if role == ENGINE_CORE:
        from enginehouse_engine.core import process

        return process.main
    from enginehouse_engine.executor import worker_process

    return worker_process.main


def devices_of(workers: Sequence[Where], index: int) -> list[str]:
    """Have this process see the devices of the rank's workers in its node, all in one order, and say which is its own.

    Those of other engines in the node are not seen. One device alone would do for computing; but NCCL between processes that see
    only their own is slow, and takes devices for others.
    """
    own = workers[index]
    if not own.devices:
        return []
    seen = sorted({device for worker in workers if worker.node == own.node for device in worker.devices}, key=_number)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seen)
    return ["--device", str(seen.index(own.devices[0]))]


def _number(device: str) -> tuple[int, str]:
    return (int(device), "") if device.isdecimal() else (sys.maxsize, device)
