"""Lines of several containers put in the order of their time.

Invariant: pure; the lines of one container keep their order, and what has no time follows the line before it.
Does not fetch them (``cluster.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

_STAMPED = re.compile(
    r"(?P<prefix>\[[^]]*\] )(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) (?P<text>.*)", re.DOTALL
)
"""As ``kubectl logs --prefix --timestamps`` writes it; a node may have another time zone."""


def in_order(lines: Iterable[str]) -> list[str]:
    """Without the time stamps they are ordered by: the engine's lines have their own."""
    stamped: list[tuple[datetime, str]] = []
    last = datetime.min.replace(tzinfo=UTC)
    for line in lines:
        match = _STAMPED.fullmatch(line)
        last = datetime.fromisoformat(match["time"]) if match else last
        stamped.append((last, match["prefix"] + match["text"] if match else line))
    return [line for _, line in sorted(stamped, key=lambda entry: entry[0])]
