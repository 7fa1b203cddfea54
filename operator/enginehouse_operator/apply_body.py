"""The body of a server-side apply: JSON that says the same when it is read as YAML, which is what the API server does. Pure.

JSON is YAML but for some characters. YAML knows no surrogates: the two escapes by which JSON writes a character beyond U+FFFF (an
emoji in the last words of a process) are refused there, and with them the whole object. And some of those that JSON leaves as they
are end a line there. So what is beyond U+FFFF stands for itself, and all else that is not ASCII is escaped. Standard library only:
the monitor writes its row with it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_NOT_ASCII: Final = re.compile(r"[\x7f-\uffff]")
_REPLACEMENT: Final = 0xFFFD


def apply_body(intent: Any) -> str:
    """The intent as text. Lone surrogates, which no object can hold, become replacement characters."""
    return _NOT_ASCII.sub(_escaped, json.dumps(intent, ensure_ascii=False))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{_REPLACEMENT if 0xD800 <= code <= 0xDFFF else code:04x}"
