"""``python -m enginehouse_engine``: flags, then the launcher."""

from __future__ import annotations

import logging
import sys

from enginehouse_engine import log_format
from enginehouse_engine.config import ConfigError
from enginehouse_engine.launcher.main import end, launch
from enginehouse_engine.launcher.termination import INVALID_CONFIG, Cause
from enginehouse_engine.options import parse

logger = logging.getLogger("enginehouse.launcher")


def main() -> int:
    """The exit code of the engine: ``docs/wire-protocol.md`` section 1."""
    logging.basicConfig(level=logging.INFO, format=log_format.text("launcher"), stream=sys.stderr)
    sys.excepthook = lambda *raised: logger.critical("a bug: the launcher fails", exc_info=raised)
    try:
        options = parse()
    except ConfigError as error:
        return end(Cause(INVALID_CONFIG, str(error)))
    return launch(options)


if __name__ == "__main__":
    sys.exit(main())
