"""The real launcher and its real processes, but rank 1 reads a changed configuration: ``run_with_another_config.py FLAGS...``"""

from __future__ import annotations

import dataclasses
import logging
import sys

import msgspec

from enginehouse_engine import config, options
from enginehouse_engine.launcher import command_lines
from enginehouse_engine.launcher.command_lines import RunFiles
from enginehouse_engine.launcher.main import launch
from enginehouse_engine.launcher.process import Process


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="launcher: %(message)s", stream=sys.stderr)

    def command_line(process: Process, files: RunFiles) -> list[str]:
        if process.rank == 1:
            changed = files.config.with_name("changed.json")
            config.save(msgspec.structs.replace(config.load(files.config), block_size=32), changed)
            files = dataclasses.replace(files, config=changed)
        return command_lines.command_line(process, files)

    return launch(options.parse(sys.argv[1:]), command_line=command_line)


if __name__ == "__main__":
    sys.exit(main())
