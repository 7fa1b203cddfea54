"""Words on a screen: colours that are only there on a terminal, ages, columns.

Invariant: pure; without colours the text is the same, letter by letter. Does not know what it shows
(``tree_text.py``, ``why_text.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec

Colour = Literal["good", "bad", "passing", "faint", "plain"]

_CODES: Final = {"good": "32", "bad": "31", "passing": "33", "faint": "2"}


class Cell(msgspec.Struct, frozen=True):
    """One field of a table."""

    text: str
    colour: Colour = "plain"


class Screen(msgspec.Struct, frozen=True, kw_only=True):
    """Where the text goes to."""

    has_colours: bool = False
    columns: int = 100

    def paint(self, text: str, colour: Colour) -> str:
        """The text itself where there are no colours."""
        code = _CODES.get(colour)
        return f"\x1b[{code}m{text}\x1b[0m" if self.has_colours and code and text else text

    def table(self, rows: Iterable[Sequence[Cell]]) -> str:
        """Columns as wide as their widest cell; no blanks at the ends of lines."""
        cells = [[Cell(printable(cell.text), cell.colour) for cell in row] for row in rows]
        widths = [max(len(cell.text) for cell in column) for column in zip(*cells, strict=True)]
        return "".join(self._line(row, widths) for row in cells)

    def _line(self, row: list[Cell], widths: list[int]) -> str:
        while row and not row[-1].text:
            row.pop()
        fields = zip(row, widths, strict=False)
        padded = [self.paint(cell.text, cell.colour) + " " * (width - len(cell.text)) for cell, width in fields]
        return "   ".join(padded).rstrip() + "\n"


def printable(text: str) -> str:
    """Without what could move the cursor or the colours: messages come from engines, and evidence from whatever they printed."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def age(since: datetime | None, *, now: datetime) -> str:
    """In the two greatest units at most, as kubectl does; empty when it is not known."""
    if since is None:
        return ""
    seconds = max(0, int((now - since).total_seconds()))
    for unit, letter, smaller, next_letter in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= unit:
            rest = seconds % unit // smaller
            return f"{seconds // unit}{letter}" + (f"{rest}{next_letter}" if rest and seconds < 10 * unit else "")
    return f"{seconds}s"
