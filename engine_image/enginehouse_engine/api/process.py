"""The API server's process: register, bind, listen, serve, drain, stop.

    python -m enginehouse_engine.api.process --launcher-socket S --config F --index I --http-fd N

Invariant: registered before anything heavy is imported; the cores' address is published before the model's files are read; every
end but a planned one is said to the launcher and has a non-zero exit code.
Does not know routes (``server.py``) or cores (``front_end.py``).
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import traceback
from pathlib import Path

from enginehouse_engine.registration import LauncherGone, Registration, RegistrationError, register

logger = logging.getLogger("enginehouse.api")

EXIT_FAILED = 1
EXIT_HOPELESS = 78
"""Trying again cannot help."""

_REGISTER_SECONDS = 30.0


def main() -> int:
    """Run until told to stop; the exit code."""
    arguments = _parse_arguments()
    # Ctrl-C in a terminal reaches the whole process group; the launcher alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s api {arguments.index}: %(message)s", stream=sys.stderr)
    try:
        registration = register(
            arguments.launcher_socket,
            role="api-server",
            rank=None,
            index=arguments.index,
            incarnation=arguments.incarnation,
            deadline_seconds=_REGISTER_SECONDS,
        )
    except RegistrationError as error:
        logger.error("%s", error)
        return EXIT_FAILED
    try:
        registration.stage("import")
        from enginehouse_engine.api.serving import run

        run(
            registration,
            config_path=Path(arguments.config),
            index=arguments.index,
            http_descriptor=arguments.http_fd,
            directory=Path(arguments.launcher_socket).parent,
        )
    except LauncherGone as error:
        logger.error("%s", error)
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the top of this process: every cause is logged once and said to the launcher
        return _report(registration, error)
    registration.bye()
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="enginehouse_engine.api.process", description="One API server.")
    parser.add_argument("--launcher-socket", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--incarnation", type=int, default=1)
    parser.add_argument("--http-fd", type=int, required=True)
    return parser.parse_args()


def _report(registration: Registration, error: Exception) -> int:
    """Say why this process ends; its exit code."""
    from enginehouse_engine.config import ConfigError

    hopeless = isinstance(error, ConfigError)
    cause = getattr(error, "failure_class", "InvalidConfig") if hopeless else "Exception"
    message = str(error) if hopeless else "".join(traceback.format_exception(error))
    logger.error("%s: %s", cause, message)
    try:
        registration.failed(cause, message)
    except RegistrationError as gone:
        logger.error("the launcher could not be told: %s", gone)
    return EXIT_HOPELESS if hopeless else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
