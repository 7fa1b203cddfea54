"""How the engine's log looks: lines of text for people, or one JSON object for each record (``--log-format``).

Its processes write text whatever is asked for, since their last lines are the evidence of a death, which people read; the launcher
makes objects of what comes out of their pipes, and writes its own records as such.

Invariant: an object is one line, whatever was written, and no word of it is lost. Does not collect anything: ``launcher/logs.py``.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Final

FORMATS: Final = ("text", "json")

_HEAD: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ([A-Z]+) [^:\n]+: ")
"""How a line begins that :func:`text` has made."""


def text(name: str) -> str:
    """For ``logging.basicConfig``; ``name`` is that of the process."""
    return f"%(asctime)s %(levelname)s {name}: %(message)s"


class Json(logging.Formatter):
    """Of records of the process that is called ``process``."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        words = record.getMessage()
        if record.exc_info:
            words += "\n" + self.formatException(record.exc_info)
        return _object(words, process=self._process, time=datetime.fromtimestamp(record.created, UTC), level=record.levelname)


def as_json(written: bytes, *, process: str, now: datetime) -> bytes:
    """Whole lines as objects. Those that are no record of ours, such as a stack, belong to the record before them; where there is
    none before them in ``written`` they are an object of their own, without a level, of ``now``.
    """
    found: list[str] = []
    words: list[str] = []
    time, level = now, ""
    for line in filter(None, re.split(r"[\r\n]+", written.decode(errors="backslashreplace"))):
        head = _HEAD.match(line)
        began = _moment(head[1]) if head else None
        if head is None or began is None:
            words.append(line)
            continue
        if words:
            found.append(_object("\n".join(words), process=process, time=time, level=level))
        time, level, words = began, head[2], [line[head.end() :]]
    if words:
        found.append(_object("\n".join(words), process=process, time=time, level=level))
    return "".join(f"{one}\n" for one in found).encode()


def _moment(local: str) -> datetime | None:
    """None of what never is: a process may write whatever it likes, and must not end the launcher by it."""
    try:
        return datetime.fromisoformat(local).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _object(message: str, *, process: str, time: datetime, level: str) -> str:
    found = {
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        **({"level": level.lower()} if level else {}),
        "process": process,
        "message": message,
    }
    # Escaped: a lone surrogate of a file's name is no UTF-8.
    return json.dumps(found)
