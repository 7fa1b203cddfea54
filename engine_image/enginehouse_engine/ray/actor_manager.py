"""The actor manager's process: register, connect to Ray, and have there what the launcher wants.

    python -m enginehouse_engine.ray.actor_manager --launcher-socket S --config F --incarnation K --address HOST:PORT

Invariant: registered before Ray is imported, so that its death is seen at once; with it goes all that it made.
Does not know what is wanted and what is there (``loop.py``), nor what Ray's calls are (``cluster.py``).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from enginehouse_engine import engine_process
from enginehouse_engine.registration import Registration

if TYPE_CHECKING:
    from enginehouse_engine.ray.actors import EngineActor


def main(actor_class: type[EngineActor] | None = None) -> int:
    """Run until told to stop; the exit code. ``actor_class``: what is started, by default processes of the engine."""
    parser = engine_process.parser("enginehouse_engine.ray.actor_manager", "Makes and removes actors in Ray.")
    parser.add_argument("--address", required=True, help="of the Ray head")
    arguments = parser.parse_args()
    return engine_process.run(
        lambda registration: _serve(registration, arguments, actor_class),
        arguments,
        role="actor-manager",
        rank=None,
        index=0,
        name="actor manager",
    )


def _serve(registration: Registration, arguments: argparse.Namespace, actor_class: type[EngineActor] | None) -> None:
    registration.stage("import")
    from enginehouse_engine import config as configuration
    from enginehouse_engine.ray.actors import EngineActor
    from enginehouse_engine.ray.cluster import Cluster
    from enginehouse_engine.ray.loop import Loop

    config = configuration.load(Path(arguments.config))
    registration.stage("connect")
    cluster = Cluster(arguments.address, namespace=config.replica_uid, actor_class=actor_class or EngineActor)
    registration.stage("serve")
    Loop(registration, cluster, tensor=config.parallel.tensor).run()


if __name__ == "__main__":
    # Not sys.exit: Ray's own end talks to a cluster that may be gone, and takes all that is here with it anyway.
    os._exit(main())
