"""Draws an answer to "why is it not Ready": one line when it is, else one screen, the first cause first.

Invariant: pure; at most MOST_TOLD findings with few lines each: the rest is counted, and stands in ``-o json``.
Does not decide (``why.py``).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Final

from .text import Screen, printable
from .why import Answer, Finding

MOST_TOLD: Final = 4
MESSAGE_CHARACTERS: Final = 600
EVIDENCE_LINES: Final = 6
_INDENT: Final = "  "


def why_text(answer: Answer, *, screen: Screen) -> str:
    """Ends with a line feed."""
    if answer.ready:
        words = answer.message if answer.reason in answer.message else f"{answer.message} ({answer.reason})"
        return f"{answer.engine} is {screen.paint('Ready', 'good')}: {words}\n"
    stalled = ", and will not be without you" if answer.stalled else ""
    lines = [f"{answer.engine} is {screen.paint('not Ready', 'bad')}{stalled}."]
    told = _grouped(answer.findings)
    for finding, others in told[:MOST_TOLD]:
        lines += ["", *_finding(finding, others, screen)]
    if len(told) > MOST_TOLD:
        lines += ["", f"{len(told) - MOST_TOLD} findings more: -o json has them all"]
    return "\n".join(lines) + "\n"


def _grouped(findings: Iterable[Finding]) -> list[tuple[Finding, int]]:
    """The first of each reason, and how many others have the same."""
    by_reason: dict[str, list[Finding]] = {}
    for finding in findings:
        by_reason.setdefault(finding.reason, []).append(finding)
    return [(same[0], len(same) - 1) for same in by_reason.values()]


def _finding(finding: Finding, others: int, screen: Screen) -> Iterable[str]:
    more = f", and {others} more" if others else ""
    reason, about = printable(finding.reason), printable(finding.about)
    yield f"{screen.paint(reason, 'passing')}  {screen.paint(about + more, 'faint')}"
    yield from _wrapped(finding.message[:MESSAGE_CHARACTERS], screen, first=_INDENT)
    for line in finding.evidence.strip().splitlines()[-EVIDENCE_LINES:]:
        yield screen.paint(f"{_INDENT}| {printable(line)}"[: screen.columns].rstrip(), "faint")
    yield from _wrapped(finding.next_step.words, screen, first=f"{_INDENT}-> ")
    if finding.next_step.command:
        yield f"{_INDENT}   $ {finding.next_step.command}"  # in one line, to be copied


def _wrapped(text: str, screen: Screen, *, first: str) -> list[str]:
    later = " " * len(first)
    wrapper = textwrap.TextWrapper(
        screen.columns, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(printable(text))
