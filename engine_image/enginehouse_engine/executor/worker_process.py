"""A worker's process: register, listen to the launcher, bind, meet the rank, and serve its engine core's calls.

    python -m enginehouse_engine.executor.worker_process --launcher-socket S --config F --rank R --incarnation K --index I

Invariant: registered before anything heavy is imported; what others are told is bound already; an exception of any call reaches
the launcher and the core, with its traceback, before the process ends.
Does not move messages (``serving.py``) and does not compute (``worker.py``).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enginehouse_engine import engine_process
from enginehouse_engine.engine_process import Failure
from enginehouse_engine.executor.launcher_watch import LauncherWatch
from enginehouse_engine.registration import Registration

if TYPE_CHECKING:
    from enginehouse_engine.config import EngineConfig
    from enginehouse_engine.executor.serving import CoreConnection, Served

_ORPHANED_SECONDS: Final = 15.0
"""A core that is gone is known to the launcher at once: it stops or kills the workers long before."""


@dataclass(frozen=True)
class WorkerStart:
    """What a served object is made from."""

    config: EngineConfig
    rank: int
    index: int
    registration: Registration
    deadline: float
    """Of the start-up, on the monotonic clock."""
    device: int | None = None


def main(make: Callable[[WorkerStart], Served] | None = None) -> int:
    """Run until told to stop; the exit code of a failure. ``make`` makes what is served, by default what the executor is."""
    parser = engine_process.parser("enginehouse_engine.executor.worker_process", "One worker of a rank.")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--device", type=int, help="which accelerator, of those that it sees; absent = that of its place")
    arguments = parser.parse_args()
    process = _WorkerProcess(arguments, make or _make_worker)
    return engine_process.run(
        process.serve,
        arguments,
        role="worker",
        rank=arguments.rank,
        index=arguments.index,
        name=f"worker {arguments.rank}.{arguments.index}",
        last_words=process.say_failed,
    )


def _make_worker(start: WorkerStart) -> Served:
    if start.config.executor == "Simulated":
        from enginehouse_engine.executor.simulated_worker import SimulatedWorker

        return SimulatedWorker(start.config, rank=start.rank, index=start.index, stage=start.registration.stage)
    from enginehouse_engine.cores import spin_briefly

    spin_briefly()
    from enginehouse_engine.executor.model_worker import ModelWorker

    return ModelWorker(
        start.config,
        rank=start.rank,
        index=start.index,
        stage=start.registration.stage,
        deadline=start.deadline,
        device=start.device,
    )


class _WorkerProcess:
    def __init__(self, arguments: argparse.Namespace, make: Callable[[WorkerStart], Served]) -> None:
        self._arguments = arguments
        self._make = make
        self._core: CoreConnection | None = None

    def serve(self, registration: Registration) -> None:
        """Ends by an exception only: ``stop`` ends the process where the launcher is listened to."""
        started = time.monotonic()
        watch = LauncherWatch(registration)
        registration.stage("import")
        from enginehouse_engine import config as configuration
        from enginehouse_engine.executor import rendezvous
        from enginehouse_engine.executor.serving import CoreConnection, CoreGone

        rank, index, incarnation = self._arguments.rank, self._arguments.index, self._arguments.incarnation
        config = configuration.load(Path(self._arguments.config))
        deadline = started + config.startup_timeout_seconds
        served = self._make(WorkerStart(config, rank, index, registration, deadline, self._arguments.device))
        # All engine cores live in the leader, member 0.
        remote_host = config.members.address if config.members.own else ""
        self._core = CoreConnection(rank=rank, index=index, incarnation=incarnation, remote_host=remote_host)
        registration.stage("handshake")
        registration.send("published", record=rendezvous.queue_record(self._core.address, **served.record))
        message = watch.peers(deadline_seconds=max(0.0, deadline - time.monotonic()))
        if message is None:
            raise rendezvous.PeersMissing(rank, config.startup_timeout_seconds)
        peers = rendezvous.peers_of(message, replica_uid=config.replica_uid, rank=rank, incarnation=incarnation)
        served.meet(rendezvous.peer(peers, rendezvous.WORKER, 0).record)
        steps = rendezvous.peer(peers, rendezvous.CORE, 0).queue()
        self._core.attach(steps, deadline_seconds=max(0.0, deadline - time.monotonic()))
        try:
            self._core.serve(served)
        except CoreGone:
            # The launcher's word ends the process where it is listened to.
            time.sleep(_ORPHANED_SECONDS)
            raise

    def say_failed(self, failure: Failure) -> None:
        """To the core, after the launcher."""
        if self._core is not None:
            self._core.say_failed(failure)


if __name__ == "__main__":
    # Not sys.exit: the interpreter's end would wait for torch's threads, and they for workers that are gone.
    os._exit(main())
