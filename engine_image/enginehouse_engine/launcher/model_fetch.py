"""The process that downloads an ``hf://`` model and prints where it is.

A process of its own, because the hub library is large and a download takes minutes: the launcher stays small, and goes on
listening to signals and its deadline. Standard output carries one JSON object, ``{"path"}`` or ``{"class", "message"}``.
Does not decide whether the engine goes on without it: the launcher does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from enginehouse_engine.config import ConfigError
from enginehouse_engine.launcher.termination import EXCEPTION, INVALID_CONFIG, TRYING_AGAIN_CANNOT_HELP
from enginehouse_engine.registration import die_with_parent


def main() -> int:
    """Exit code 0; or 78, or 1 where another time may help, with the reason on standard output."""
    from enginehouse_engine import model_source

    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("--revision", required=True)
    parser.add_argument("--cache-dir", type=Path)
    arguments = parser.parse_args()
    try:
        path = model_source.resolve(arguments.uri, revision=arguments.revision, cache_dir=arguments.cache_dir)
    except ConfigError as error:
        print(json.dumps({"class": getattr(error, "failure_class", INVALID_CONFIG), "message": str(error)}))
        return TRYING_AGAIN_CANNOT_HELP
    except OSError as error:
        print(json.dumps({"class": EXCEPTION, "message": str(error)}))
        return 1
    print(json.dumps({"path": str(path)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
