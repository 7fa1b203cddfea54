"""What a dead process said last, and where the survivors of its rank were: a text for people who read ``kubectl describe``. Pure.

Invariants: at most ``MOST_CHARACTERS``; of what is too long the telling part is kept: the end of the lines, the newest calls of a
stack; no control characters. Does not collect anything: ``logs.py`` and ``stack_dumps.py`` do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

MOST_CHARACTERS: Final = 4096
_LINES: Final = 40
_STACKS_CHARACTERS: Final = 2048
_CALLS: Final = 8
"""Of the thread that was asked, mostly the main one."""
_CALLS_ELSEWHERE: Final = 3
_NO_STACK: Final = "has not told where it was"

# Colours and the like, and other control characters.
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CALL: Final = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\S+) in (?P<name>.*)$')
_THREAD: Final = re.compile(r"^(?P<current>Current thread|Thread) 0x[0-9a-f]+.* \(most recent call first\):$")


def evidence(name: str, *, last: bytes, stacks: Mapping[str, bytes]) -> str:
    """``last`` is what ``name`` wrote before it died; ``stacks`` what faulthandler wrote for others, by their names."""
    each = _STACKS_CHARACTERS // max(1, len(stacks))
    where = "\n".join(f"{other} {_where(dump)}"[:each] for other, dump in stacks.items())
    lines = last_lines(last)
    head = f"last lines of {name}:\n"
    room = MOST_CHARACTERS - len(where) - len(head) - 1
    said = head + (lines if len(lines) <= room else "…" + lines[len(lines) - room + 1 :]) if lines else ""
    return "\n".join(part for part in (said, where) if part)


def last_lines(data: bytes) -> str:
    """The last lines of a log, without what only a terminal understands and without faulthandler's list of extension modules."""
    # Of a progress bar, what was drawn last.
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in data.decode(errors="replace").split("\n")]
    lines = [_ESCAPES.sub("", line) for line in shown if not line.startswith("Extension modules: ")]
    return "\n".join([line for line in lines if line.strip()][-_LINES:])


def _where(dump: bytes) -> str:
    """The newest calls of each thread, the one that took the signal first."""
    threads: list[tuple[bool, list[str]]] = []
    for line in _ESCAPES.sub("", dump.decode(errors="replace")).splitlines():
        if thread := _THREAD.match(line):
            threads.append((thread["current"] == "Current thread", []))
        elif threads and (call := _CALL.match(line)):
            path = PurePosixPath(call["file"])
            threads[-1][1].append(f"{'/'.join(path.parts[-2:])}:{call['line']} {call['name']}")
    threads.sort(key=lambda thread: not thread[0])
    told = [" < ".join(calls[: _CALLS if current else _CALLS_ELSEWHERE]) for current, calls in threads if calls]
    return f"was at {'; another thread at '.join(told)}" if told else _NO_STACK
