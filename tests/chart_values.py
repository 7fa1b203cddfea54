"""What the chart's own files say: its values with their comments, and the rules of the operator's role.

The one job: read `values.yaml` and `_names.tpl` without helm, for the generated README and for tests.
The invariant kept: every `# --` comment names a value that exists.
Not done here: whether every value has one (`tests/charts/test_chart.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "charts" / "enginehouse"
_MARK = "# -- "


@dataclass(frozen=True)
class Value:
    """One value of the chart. `comment` begins with its name."""

    name: str
    default: Any
    comment: str


def values() -> Iterator[Value]:
    """In the order of the file."""
    text = (CHART / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    lines = iter([*(line.strip() for line in text.splitlines()), ""])
    for line in lines:
        if not line.startswith(_MARK):
            continue
        words = [line.removeprefix(_MARK)]
        while (more := next(lines)).startswith("# "):
            words.append(more.removeprefix("# "))
        name = words[0].split()[0]
        default = defaults
        for part in name.split("."):
            default = default[part]
        yield Value(name, default, " ".join(words))


def operator_rules() -> list[dict[str, Any]]:
    """What the operator may do where engines live."""
    text = (CHART / "templates" / "_names.tpl").read_text()
    rules: list[dict[str, Any]] = yaml.safe_load(text.split('define "enginehouse.rules" -}}')[1].split("{{-")[0])
    return rules
