"""The API server's audit log, read while it is being written.

The one job: whole lines of it, from a place on. Invariant: a line that is being written is left out, at either end; nothing that
was whole when reading began is. Does not know what a line says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def whole_lines(log: Path, *, since: int = 0) -> Iterator[bytes]:
    """Those that begin after so many bytes; what was being written when the log had that size is not among them."""
    with log.open("rb") as lines:
        if since:
            lines.seek(since - 1)
            lines.readline()
        for line in lines:
            if not line.endswith(b"\n"):
                return  # a next one would be its other half
            yield line
