"""A real engine core whose simulated model does something in a step that has a prompt of this many tokens.

hooked_core.py steps-spin=11|steps-take=11:SECONDS ARGUMENTS OF THE ENGINE CORE
"""

from __future__ import annotations

import sys
import time
from typing import Any

from enginehouse_engine.core import process
from enginehouse_engine.executor import factory
from enginehouse_engine.executor.contract import StepInput
from enginehouse_engine.executor.simulated import SimulatedExecutor


def main() -> int:
    deed, _, value = sys.argv.pop(1).removeprefix("steps-").partition("=")
    length, _, seconds = value.partition(":")

    def hook(step: StepInput) -> None:
        if int(length) not in step.query_lengths:
            return
        while deed == "spin":
            pass
        time.sleep(float(seconds))

    def create(config: Any, *, rank: int, **_: Any) -> SimulatedExecutor:
        return SimulatedExecutor(config, rank=rank, before_step=hook)

    factory.create_executor = create  # type: ignore[assignment]  # takes what the core gives, and nothing else
    return process.main()


if __name__ == "__main__":
    sys.exit(main())
