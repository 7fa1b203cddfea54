"""The launcher's children: spawned, killed and reaped here and nowhere else.

Invariants: every child leads a session of its own, so that a terminal's Ctrl-C reaches the launcher alone and a child's
descendants can be killed with it; a process group is killed only while its leader is unreaped, so its number cannot have
passed to a stranger. The launcher is PID 1 of its container or a subreaper, so orphaned descendants come here and are
reaped, too. Never forks: ``posix_spawn`` only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.termination import Exit

_PR_SET_CHILD_SUBREAPER: Final = 36
_PF_EXITING: Final = 0x4
"""The flag of a task that is in the kernel's exit path, from include/linux/sched.h."""
_LEFTOVER_SECONDS: Final = 2.0
MOST_DESCRIPTORS: Final = 65536
"""Each client of an API server takes one; the usual limit of 1024 is for programs that use select(2)."""


def become_reaper() -> None:
    """Orphans of this tree come to this process, and nothing in it writes core dumps: they would hold an end back for minutes."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("this kernel does not let the launcher adopt orphans (PR_SET_CHILD_SUBREAPER)")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def raise_descriptor_limit() -> None:
    """As far as this machine lets us, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@dataclass
class Children:
    """Those that were spawned and not reaped yet."""

    _pids: dict[int, Process] = field(default_factory=dict)

    def spawn(
        self, process: Process, argv: Sequence[str], *, descriptors: Mapping[int, int], environment: Mapping[str, str] = os.environ
    ) -> int:
        """Start ``argv``; its pid. ``descriptors`` maps numbers in the child to descriptors here.

        Standard input is empty and standard output goes to the launcher's standard error, since standard output is the launcher's.
        """
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, 2, 1),
        ]
        actions += [(os.POSIX_SPAWN_DUP2, here, there) for there, here in descriptors.items()]
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            environment,
            file_actions=actions,
            setsid=True,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
        self._pids[pid] = process
        return pid

    def kill(self, process: Process) -> bool:
        """SIGKILL to the process and its descendants; whether its own end had begun before."""
        for pid, found in self._pids.items():
            if found == process:
                was_dying = _is_dying(pid)
                _kill_group(pid)
                return was_dying
        return False

    def reap(self) -> list[tuple[Process, Exit]]:
        """All that have exited since the last call. What such a child left behind in its session is killed."""
        gone = []
        while (info := _next_exited()) is not None:
            process = self._pids.pop(info.si_pid, None)
            if process is not None:
                _kill_group(info.si_pid)
                gone.append((process, _exit_of(info)))
            os.waitid(os.P_PID, info.si_pid, os.WEXITED)
        return gone

    def kill_leftovers(self) -> None:
        """Before the launcher exits: orphans that left their session. Waits a moment for each, not for ever."""
        while pids := _children_of_this_process():
            for pid in pids:
                descriptor = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    if not select.select([descriptor], [], [], _LEFTOVER_SECONDS)[0]:
                        return
                finally:
                    os.close(descriptor)
                os.waitid(os.P_PID, pid, os.WEXITED)


def _next_exited() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def _is_dying(pid: int) -> bool:
    """Of an unreaped child: has the kernel begun to take it down?"""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)


def _exit_of(info: os.waitid_result) -> Exit:
    return Exit(exit_code=info.si_status) if info.si_code == os.CLD_EXITED else Exit(signal=info.si_status)


def _kill_group(leader: int) -> None:
    # No such process: only the leader was in it, and it is a zombie already.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _children_of_this_process() -> list[int]:
    """Unreaped children, zombies included."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
