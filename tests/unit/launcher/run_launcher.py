"""The real launcher with stand-in processes: ``run_launcher.py '{"api-server 0": "bound,ready=0", ...}' FLAGS...``

A worker's key is ``worker RANK.INDEX``; ``KEY again`` is how a later incarnation behaves, if not like the first. Whoever has no key
is the real process; an engine core's behaviour may be one of ``hooked_core.py``.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from enginehouse_engine import options
from enginehouse_engine.launcher import command_lines, stack_dumps
from enginehouse_engine.launcher.command_lines import RunFiles
from enginehouse_engine.launcher.main import launch
from enginehouse_engine.launcher.process import WORKER, Process


def main() -> int:
    behaviours = json.loads(sys.argv[1])
    # A busy machine gets its time.
    stack_dumps.ANSWER_SECONDS = stack_dumps.MOST_SECONDS = 30.0  # type: ignore[misc]  # it is final but in tests
    logging.basicConfig(level=logging.INFO, format="launcher: %(message)s", stream=sys.stderr)

    def command_line(process: Process, files: RunFiles) -> list[str]:
        key = f"{process.role} {process.index if process.rank is None else process.rank}"
        if process.role == WORKER:
            key = f"{key}.{process.index}"
        if process.incarnation > 1:
            key = f"{key} again" if f"{key} again" in behaviours else key
        if key not in behaviours:
            return command_lines.command_line(process, files)
        if behaviours[key].startswith("steps-"):
            real = command_lines.command_line(process, files)
            return [sys.executable, str(Path(__file__).with_name("hooked_core.py")), behaviours[key], *real[3:]]
        if behaviours[key] == "broken":
            raise RuntimeError("this launcher has a mistake")
        if behaviours[key] == "missing":
            return ["/nowhere/python"]
        stand_in = str(Path(__file__).with_name("stand_in.py"))
        own = [
            str(files.launcher_socket),
            process.role,
            str(process.rank),
            str(process.index),
            str(process.incarnation),
            behaviours[key],
        ]
        return [sys.executable, stand_in, *own]

    return launch(options.parse(sys.argv[2:]), command_line=command_line)


if __name__ == "__main__":
    sys.exit(main())
