"""The engine core's process: register, load, serve, and say how it ended.

    python -m enginehouse_engine.core.process --launcher-socket S --config F --rank R --incarnation K

Invariant: registered before anything heavy is imported, so that a death at any later moment is seen; every end but a planned one
is said to the launcher and has a non-zero exit code.
Does not talk to front ends (``loop.py``), schedule (``engine_core.py``) or reap anybody.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
import traceback
from pathlib import Path

from enginehouse_engine.registration import LauncherGone, Registration, RegistrationError, register

logger = logging.getLogger("enginehouse.core")

EXIT_FAILED = 1
EXIT_HOPELESS = 78
"""Trying again cannot help."""

_REGISTER_SECONDS = 30.0


def main() -> int:
    """Run until told to stop; the exit code."""
    arguments = _parse_arguments()
    # Ctrl-C in a terminal reaches the whole process group; the launcher alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s core {arguments.rank}: %(message)s", stream=sys.stderr)
    try:
        registration = register(
            arguments.launcher_socket,
            role="engine-core",
            rank=arguments.rank,
            index=0,
            incarnation=arguments.incarnation,
            deadline_seconds=_REGISTER_SECONDS,
        )
    except RegistrationError as error:
        logger.error("%s", error)
        return EXIT_FAILED
    try:
        _serve(registration, Path(arguments.config), rank=arguments.rank, incarnation=arguments.incarnation)
    except LauncherGone as error:
        logger.error("%s", error)
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the top of this process: every cause is logged once and said to the launcher
        return _report(registration, error)
    registration.bye()
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="enginehouse_engine.core.process", description="The engine core of one rank.")
    parser.add_argument("--launcher-socket", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--incarnation", type=int, required=True)
    return parser.parse_args()


def _serve(registration: Registration, config_path: Path, *, rank: int, incarnation: int) -> None:
    started = time.monotonic()
    registration.stage("import")
    from enginehouse_engine import config as configuration
    from enginehouse_engine.core.engine_core import EngineCore
    from enginehouse_engine.core.loop import Loop
    from enginehouse_engine.cores import spin_briefly
    from enginehouse_engine.executor.factory import create_executor

    spin_briefly()
    config = configuration.load(config_path)
    registration.stage("load")
    executor = create_executor(config, rank=rank)
    try:
        registration.stage("profile")
        core = EngineCore(config, executor)
        fit = core.fit
        elapsed = time.monotonic() - started
        logger.info(
            "context %d tokens, limited by %s; %d KV blocks; up after %.1f s",
            fit.max_context_length,
            fit.limited_by,
            fit.usable_blocks,
            elapsed,
        )
        registration.stage("handshake")
        Loop(registration, config, core, rank=rank, incarnation=incarnation).run()
    finally:
        executor.shutdown()


def _report(registration: Registration, error: Exception) -> int:
    """Say why this process ends; its exit code."""
    cause, exit_code = _classify(error)
    message = str(error) if exit_code == EXIT_HOPELESS else "".join(traceback.format_exception(error))
    logger.error("%s: %s", cause, message)
    try:
        registration.failed(cause, message)
    except RegistrationError as gone:
        logger.error("the launcher could not be told: %s", gone)
    return exit_code


def _classify(error: Exception) -> tuple[str, int]:
    """Class of the launcher's termination message and exit code."""
    from enginehouse_engine.config import ConfigError
    from enginehouse_engine.core.context_fit import ContextTooSmall
    from enginehouse_engine.core.loop import HandshakeTimeout

    if isinstance(error, ContextTooSmall):
        return "ContextTooSmall", EXIT_HOPELESS
    if isinstance(error, ConfigError):
        return getattr(error, "failure_class", "InvalidConfig"), EXIT_HOPELESS
    if isinstance(error, HandshakeTimeout):
        return "StartupTimeout", EXIT_FAILED
    # torch's own class is told by its name, to leave torch out of processes that do without it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "OutOfMemory", EXIT_FAILED
    return "Exception", EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
