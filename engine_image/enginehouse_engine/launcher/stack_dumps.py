"""The stacks of processes that are about to be killed because of somebody's death: asked for, waited for a moment, kept.

A process that registered answers SIGQUIT with the stacks of all its threads and ends by it (``registration.py``), so asking is
killing already: only one that does not answer lives on until its SIGKILL, for ``ANSWER_SECONDS`` at most.

Invariants: all deaths of one second together wait ``MOST_SECONDS`` at most; nobody is waited for who cannot answer: the dying and
the stopped. Does not kill and does not read logs itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enginehouse_engine.launcher.actors import Actors
from enginehouse_engine.launcher.evidence import evidence
from enginehouse_engine.launcher.logs import Logs
from enginehouse_engine.launcher.process import Process

ANSWER_SECONDS: Final = 0.05
"""Far more than it takes: 1 to 2 ms for a worker with torch, also in a collective; 17 ms at most with seven others to a core."""
MOST_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 0.001
"""Nothing tells the end of a stack but the process's: its pipes and its exit may come much later, after its memory."""


@dataclass(frozen=True)
class _Answer:
    start: int
    """Where it begins in the log of its process."""
    text: bytes


class StackDumps:
    """What was told, until the process's successor starts."""

    def __init__(self, actors: Actors, logs: Logs) -> None:
        self._actors = actors
        self._logs = logs
        self._answers: dict[Process, _Answer] = {}
        self._second = -1.0
        self._waited_seconds = 0.0

    def take(self, processes: Sequence[Process]) -> None:
        """Ask them all, and wait until each has answered or the time is over."""
        begin = time.monotonic()
        if begin - self._second >= 1.0:
            self._second, self._waited_seconds = begin, 0.0
        deadline = begin + min(ANSWER_SECONDS, MOST_SECONDS - self._waited_seconds)
        if begin >= deadline:
            return
        starts = {}
        for process in processes:
            self._logs.catch_up(process)
            start = self._logs.position(process)
            if self._actors.ask_for_stacks(process):
                starts[process] = start
        waiting = list(starts)
        while waiting and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            for process in waiting:
                self._logs.catch_up(process)  # Its pipe may be full, with nobody reading the log.
            waiting = [process for process in waiting if not self._actors.is_dying(process)]
        for process, start in starts.items():
            self._logs.catch_up(process)
            self._answers[process] = _Answer(start, self._logs.kept(process, start=start))
        self._waited_seconds += time.monotonic() - begin

    def evidence(self, process: Process) -> str:
        """The last lines of one that died, up to where it was asked itself, and where those of its unit were who were asked."""
        own = self._answers.get(process)
        last = self._logs.kept(process, end=own.start if own else None)
        stacks = {str(other): answer.text for other, answer in self._answers.items() if _is_of_unit(other, process)}
        return evidence(str(process), last=last, stacks=stacks)

    def evidence_of_all(self) -> str:
        """Where everybody was who was asked: for an end that is no process's own."""
        return evidence("", last=b"", stacks={str(other): answer.text for other, answer in self._answers.items()})

    def forget(self, successor: Process) -> None:
        """Nobody asks for what its earlier incarnations have told."""
        for process in [other for other in self._answers if _is_same_place(other, successor)]:
            del self._answers[process]


def _is_of_unit(other: Process, process: Process) -> bool:
    """An API server is one of its own."""
    if process.rank is None:
        return other == process
    return (other.rank, other.incarnation) == (process.rank, process.incarnation)


def _is_same_place(other: Process, process: Process) -> bool:
    return (other.role, other.rank, other.index) == (process.role, process.rank, process.index)
