"""The file a benchmark leaves: versions, machine, repeats, all figures, and whether each bar holds.

The one job: write `build/bench/NAME.json` and turn the bars into an exit status.
The invariant kept: a figure that is claimed has its bar, its limit and its unit beside it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "build" / "bench"


@dataclass(frozen=True)
class Bar:
    """One promise: `value` must be at most, or at least, `limit`."""

    bar: str
    value: float
    limit: float
    unit: str
    holds: bool


def at_most(bar: str, value: float, *, limit: float, unit: str) -> Bar:
    return Bar(bar, round(value, 4), limit, unit, value <= limit)


def at_least(bar: str, value: float, *, limit: float, unit: str) -> Bar:
    return Bar(bar, round(value, 4), limit, unit, value >= limit)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": os.cpu_count(), "memory_bytes": memory, "kernel": platform.release()}


def write(name: str, *, figures: dict[str, Any], bars: list[Bar], repeats: int, packages: tuple[str, ...] = ()) -> int:
    """Write the file, print the bars, and return the exit status: 1 when one does not hold."""
    versions = {package: importlib.metadata.version(package) for package in packages}
    record = {
        "name": name,
        "versions": {"python": platform.python_version(), **versions},
        "machine": machine(),
        "repeats": repeats,
        "figures": figures,
        "bars": [asdict(bar) for bar in bars],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    for bar in bars:
        print(f"{'holds' if bar.holds else 'BROKEN':6}  {bar.bar}: {bar.value:g} {bar.unit} (limit {bar.limit:g})")
    print(f"wrote {path}")
    return 0 if all(bar.holds for bar in bars) else 1
