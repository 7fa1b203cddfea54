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
from enginehouse_engine.launcher.process_state import is_dying, is_stopped
from enginehouse_engine.launcher.termination import Exit

_PR_SET_CHILD_SUBREAPER: Final = 36
_NO_CORE_BYTES: Final = 1
"""To a file, too little for any core. With 0 the kernel would still hand the whole of it to a program, where the node has one for
that (``core_pattern`` with a ``|``), and the death would wait for it; 1 is the one limit that prevents this, too.
"""
_LEFTOVER_SECONDS: Final = 2.0
_FAREWELL_SECONDS: Final = 1.0
"""A raylet takes 0.13 s."""
MOST_DESCRIPTORS: Final = 65536
"""Each client of an API server takes one; the usual limit of 1024 is for programs that use select(2)."""


def become_reaper() -> None:
    """Orphans of this tree come to this process, and nothing in it writes core dumps: they would hold an end back for minutes."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("this kernel does not let the launcher adopt orphans (PR_SET_CHILD_SUBREAPER)")
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else _NO_CORE_BYTES, hard))


def raise_descriptor_limit() -> None:
    """As far as this machine lets us, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def kill_leftovers() -> None:
    """Before the launcher exits, whatever for: orphans that left their session. Waits a moment for each, not for ever."""
    while pids := _children_of_this_process():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            descriptor = os.pidfd_open(pid)
            try:
                if not select.select([descriptor], [], [], _LEFTOVER_SECONDS)[0]:
                    return
            finally:
                os.close(descriptor)
            os.waitid(os.P_PID, pid, os.WEXITED)


@dataclass(frozen=True)
class Gone:
    """A child that is reaped."""

    process: Process
    exit: Exit
    died_first: bool
    """It was killed here, but its end had begun before, and for another reason."""


@dataclass
class _Child:
    process: Process
    was_asked: bool = False
    """For its stacks, of which it dies."""
    was_killed: bool = False
    died_first: bool = False
    alone: bool = False
    """What it has started outlives it, or its group is somebody else's: then nobody dies with it."""


@dataclass
class Children:
    """Those that were spawned and not reaped yet."""

    _pids: dict[int, _Child] = field(default_factory=dict)

    def spawn(
        self,
        process: Process,
        argv: Sequence[str],
        *,
        standard_error: int,
        descriptors: Mapping[int, int],
        environment: Mapping[str, str] = os.environ,
        alone: bool = False,
    ) -> int:
        """Start ``argv``; its pid. ``descriptors`` maps numbers in the child to descriptors here. ``alone``: its descendants stay.

        Standard input is empty and standard output goes to standard error, since the launcher's standard output is its own.
        """
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, standard_error, 2),
            (os.POSIX_SPAWN_DUP2, 2, 1),
        ]
        actions += [(os.POSIX_SPAWN_DUP2, here, there) for there, here in descriptors.items()]
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            environment,
            file_actions=actions,
            setsid=True,
            # A shell that starts the launcher in the background has it ignore SIGQUIT.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGQUIT],
        )
        self._pids[pid] = _Child(process, alone=alone)
        return pid

    def adopt(self, wanted: Mapping[str, Process]) -> dict[Process, int]:
        """Of the orphans that came here, those whose command is named; their pids. From now on they are children like others."""
        found = {}
        for pid in _children_of_this_process():
            process = wanted.get(_command(pid)) if pid not in self._pids else None
            if process is not None:
                self._pids[pid] = _Child(process, alone=True)
                found[process] = pid
        return found

    def ask_for_stacks(self, process: Process) -> bool:
        """SIGQUIT to the process alone, which ends it; False = it cannot answer, being stopped, about to die, or gone."""
        pid, child = self._find(process)
        if child is None or is_stopped(pid) or is_dying(pid):
            return False
        child.was_asked = True
        os.kill(pid, signal.SIGQUIT)
        return True

    def is_dying(self, process: Process) -> bool:
        """Has the kernel begun to take it down, or is it gone? What it wrote is all there then."""
        pid, child = self._find(process)
        return child is None or is_dying(pid)

    def kill(self, process: Process) -> None:
        """SIGKILL to the process and its descendants."""
        pid, child = self._find(process)
        if child is not None and not child.was_killed:
            child.was_killed, child.died_first = True, is_dying(pid)
            _kill(pid, child)

    def say_farewell(self, process: Process) -> None:
        """SIGTERM, and a moment to obey: for when there is nothing else to do any more."""
        pid, child = self._find(process)
        if child is None or child.was_killed:
            return
        child.was_killed, child.died_first = True, is_dying(pid)
        descriptor = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGTERM)
            select.select([descriptor], [], [], _FAREWELL_SECONDS)
        finally:
            os.close(descriptor)
        _kill(pid, child)

    def reap(self) -> list[Gone]:
        """All that have exited since the last call. What such a child left behind in its session is killed."""
        gone = []
        while (info := _next_exited()) is not None:
            child = self._pids.pop(info.si_pid, None)
            if child is not None:
                if not child.alone:
                    _kill_group(info.si_pid)
                exit = _exit_of(info)
                # One that was asked for its stacks dies of that, and at worst of walking over them while they change; but not of
                # SIGKILL, which came from elsewhere, nor by an exit.
                of_asking = child.was_asked and exit.signal not in (None, signal.SIGKILL)
                gone.append(Gone(child.process, exit, died_first=child.died_first and not of_asking))
            os.waitid(os.P_PID, info.si_pid, os.WEXITED)
        return gone

    def stopped_or_continued(self) -> list[tuple[Process, int | None]]:
        """Those whom a signal has stopped since the last call, with its number; None = continued. Disturbs no reaping: of exits the
        kernel says nothing here."""
        changed = []
        while (info := _next_stopped_or_continued()) is not None:
            if (child := self._pids.get(info.si_pid)) is not None:
                changed.append((child.process, info.si_status if info.si_code == os.CLD_STOPPED else None))
        return changed

    def _find(self, process: Process) -> tuple[int, _Child | None]:
        return next(((pid, child) for pid, child in self._pids.items() if child.process == process), (0, None))


def _next_exited() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def _next_stopped_or_continued() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
    except ChildProcessError:
        return None


def _exit_of(info: os.waitid_result) -> Exit:
    return Exit(exit_code=info.si_status) if info.si_code == os.CLD_EXITED else Exit(signal=info.si_status)


def _kill(pid: int, child: _Child) -> None:
    if child.alone:
        os.kill(pid, signal.SIGKILL)
    else:
        _kill_group(pid)


def _kill_group(leader: int) -> None:
    # No such process: only the leader was in it, and it is a zombie already.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _command(pid: int) -> str:
    """Of an unreaped child."""
    return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()


def _children_of_this_process() -> list[int]:
    """Unreaped children, zombies included."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
