"""How somebody else's child ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from enginehouse_engine.launcher import pidfd_exit
from enginehouse_engine.launcher.termination import Exit

SAYS_HOW = tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 15)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("raise SystemExit(0)", Exit(exit_code=0)),
        ("raise SystemExit(7)", Exit(exit_code=7)),
        ("import os; os.kill(os.getpid(), 9)", Exit(signal=signal.SIGKILL)),
    ],
    ids=["planned", "a code", "a signal"],
)
def test_the_kernel_says_how_a_process_ended_once_its_parent_has_reaped_it(code: str, end: Exit) -> None:
    process = subprocess.Popen([sys.executable, "-c", f"import sys; sys.stdin.read(); {code}"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    pidfd = os.pidfd_open(process.pid)
    try:
        assert pidfd_exit.exit_of(pidfd) is None, "it lives"
        process.stdin.close()
        process.wait()
        assert pidfd_exit.exit_of(pidfd) == (end if SAYS_HOW else None)
    finally:
        os.close(pidfd)
