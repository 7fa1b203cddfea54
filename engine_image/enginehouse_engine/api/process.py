"""The API server's process: register, bind, listen, serve, drain, stop.

    python -m enginehouse_engine.api.process --launcher-socket S --config F --index I --http-fd N

Invariant: registered before anything heavy is imported; the cores' address is published before the model's files are read; every
end but a planned one is said to the launcher and has a non-zero exit code.
Does not know routes (``server.py``) or cores (``front_end.py``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from enginehouse_engine import engine_process
from enginehouse_engine.registration import Registration


def main() -> int:
    """Run until told to stop; the exit code."""
    parser = engine_process.parser("enginehouse_engine.api.process", "One API server.")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--http-fd", type=int, required=True)
    arguments = parser.parse_args()
    index = arguments.index
    return engine_process.run(
        lambda registration: _serve(registration, arguments),
        arguments,
        role="api-server",
        rank=None,
        index=index,
        name=f"api {index}",
    )


def _serve(registration: Registration, arguments: argparse.Namespace) -> None:
    registration.stage("import")
    from enginehouse_engine.api.serving import run

    run(
        registration,
        config_path=Path(arguments.config),
        index=arguments.index,
        http_descriptor=arguments.http_fd,
        directory=Path(arguments.launcher_socket).parent,
    )


if __name__ == "__main__":
    sys.exit(main())
