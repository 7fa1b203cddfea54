"""The engine core's process: register, load, serve, and say how it ended.

    python -m enginehouse_engine.core.process --launcher-socket S --config F --rank R --incarnation K

Invariant: registered before anything heavy is imported, so that a death at any later moment is seen; every end but a planned one
is said to the launcher and has a non-zero exit code.
Does not talk to front ends (``loop.py``), schedule (``engine_core.py``) or reap anybody.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enginehouse_engine import engine_process
from enginehouse_engine.engine_process import Stopped
from enginehouse_engine.registration import Registration

if TYPE_CHECKING:
    from enginehouse_engine.config import EngineConfig
    from enginehouse_engine.executor.rendezvous import Peer

logger = logging.getLogger("enginehouse.core")

CAUSE_SECONDS: Final = 2.0
"""For the launcher to end a core whose worker is gone. Workers whose core is gone wait, too."""


def main() -> int:
    """Run until told to stop; the exit code."""
    parser = engine_process.parser("enginehouse_engine.core.process", "The engine core of one rank.")
    parser.add_argument("--rank", type=int, required=True)
    arguments = parser.parse_args()
    rank = arguments.rank
    return engine_process.run(
        lambda registration: _serve(registration, arguments), arguments, role="engine-core", rank=rank, index=0, name=f"core {rank}"
    )


def _serve(registration: Registration, arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    registration.stage("import")
    from enginehouse_engine import config as configuration
    from enginehouse_engine.core.engine_core import EngineCore
    from enginehouse_engine.core.loop import Loop
    from enginehouse_engine.cores import spin_briefly
    from enginehouse_engine.executor.contract import WorkerGone
    from enginehouse_engine.executor.factory import create_executor

    spin_briefly()
    rank, incarnation = arguments.rank, arguments.incarnation
    config = configuration.load(Path(arguments.config))
    registration.stage("load")
    rendezvous = _Rendezvous(registration, config, rank=rank, incarnation=incarnation)
    try:
        executor = create_executor(config, rank=rank, incarnation=incarnation, rendezvous=rendezvous)
        try:
            registration.stage("profile")
            core = EngineCore(config, executor)
            fit, elapsed = core.fit, time.monotonic() - started
            words = "context %d tokens, limited by %s; %d KV blocks; up after %.1f s"
            logger.info(words, fit.max_context_length, fit.limited_by, fit.usable_blocks, elapsed)
            registration.stage("handshake")
            Loop(registration, config, core, executor, rank=rank, incarnation=incarnation, held=rendezvous.held).run()
        finally:
            executor.shutdown()
    except WorkerGone:
        # Its own launcher knows of what, and ends this process as well: that cause says more than what is seen from here, and
        # on a busy machine, or from another pod, it may come later.
        time.sleep(CAUSE_SECONDS)
        raise


class _Rendezvous:
    """With the workers of this rank, through the launcher. ``held``: what else it said meanwhile."""

    def __init__(self, registration: Registration, config: EngineConfig, *, rank: int, incarnation: int) -> None:
        self._registration = registration
        self._replica_uid = config.replica_uid
        self._rank = rank
        self._incarnation = incarnation
        self.held: list[dict[str, Any]] = []

    def publish(self, record: dict[str, Any]) -> None:
        self._registration.send("published", record=record)

    def peers(self, *, deadline_seconds: float) -> tuple[Peer, ...]:
        from enginehouse_engine.executor.rendezvous import PeersMissing, peers_of

        deadline = time.monotonic() + deadline_seconds
        while (message := self._registration.receive(max(0.0, deadline - time.monotonic()))) is not None:
            match message["type"]:
                case "peers":
                    return peers_of(message, replica_uid=self._replica_uid, rank=self._rank, incarnation=self._incarnation)
                case "stop":
                    raise Stopped
                case _:
                    self.held.append(message)
        raise PeersMissing(self._rank, deadline_seconds)


if __name__ == "__main__":
    sys.exit(main())
