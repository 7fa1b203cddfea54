"""How the logs of operator and monitor look: a line of text for people, or one JSON object for each record (``--log-format``).

Invariant: a record is one line of JSON whatever is in it, also with a traceback; what a record is about comes as ``about`` (below),
and both formats show it. Does not say what is logged, nor where to (their ``__main__.py``).
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final

FORMATS: Final = ("text", "json")
_ABOUT: Final = ("engine", "object", "reason")


def about(namespace: str, name: str, **more: str) -> dict[str, str]:
    """The ``extra`` of a record about an engine, and within it about an ``object`` of its namespace, for a ``reason``."""
    return {"engine": f"{namespace}/{name}", **more}


def formatter(kind: str) -> logging.Formatter:
    """Of one of the FORMATS."""
    return _Json() if kind == "json" else _Text("%(asctime)s %(levelname)s %(name)s: %(message)s")


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        if engine := getattr(record, "engine", ""):
            record.message = f"{engine}: {record.message}"
        return super().formatMessage(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        found |= {key: str(record.__dict__[key]) for key in _ABOUT if key in record.__dict__}
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)
