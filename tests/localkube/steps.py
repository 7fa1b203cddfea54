"""Progress that a person can follow.

The one job: print each step when it is done, with how long it took, on standard error.
The invariant kept: standard output stays free for what a command prints for other programs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def report(text: str, *, seconds: float | None = None) -> None:
    """Print one finished step."""
    took = "        " if seconds is None else f"{seconds:6.1f} s"
    print(f"  {took}  {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str, *, announce: bool = False) -> Iterator[None]:
    """Time what happens inside; `announce` says beforehand what takes long."""
    if announce:
        report(f"{text} ...")
    began = time.monotonic()
    yield
    report(text, seconds=time.monotonic() - began)
