"""What the kernel says of a process, read whatever the process has done to it."""

from __future__ import annotations

import subprocess
import sys

from enginehouse_engine.launcher.process_state import is_dying, is_stopped


def test_a_process_may_call_itself_whatever_it_likes() -> None:
    """Fifteen bytes of its choice stand in the line that is read, and need not be text."""
    script = r"import ctypes, sys; ctypes.CDLL(None).prctl(15, b'\xff) Z 1', 0, 0, 0); print('named', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"named\n"
        assert not is_dying(process.pid)
        assert not is_stopped(process.pid)
        process.kill()
        process.communicate()
        assert is_dying(process.pid)
