"""Who lives and does nothing any more: stopped, stuck, or going round in circles. Pure; the clock is passed in.

Processes that answer questions (engine cores, API servers) are pinged four times per stall time, and answer between two pieces of
their work: one who owes an answer for the whole stall time is hung, and so is a core that has requests and computes no step. That a
process was stopped is told by the kernel, of any process.

Invariants: nothing is judged by the time that this launcher itself was held up, asleep or stopped: it then begins all waits anew; a
question is asked once, so that nothing piles up before one who does not answer; without anybody to ask there is no timer.
Does not decide who is asked, nor what follows (``lifecycle.py``).
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from enginehouse_engine.launcher.messages import Pong
from enginehouse_engine.launcher.process import Process

PINGS_PER_STALL: Final = 4


@dataclass
class _Pulse:
    """Of one who is asked."""

    asked_at: float = math.inf
    """Since when an answer is owed; infinite = none is."""
    steps: int = -1
    idle_since: float = math.inf
    """Since when it has requests and computes nothing."""


@dataclass
class _Stop:
    number: int
    """Of the signal that did it."""
    since: float


@dataclass(frozen=True)
class Look:
    """Whom to ask now; and who is hung, with the reason."""

    ask: tuple[Process, ...] = ()
    hung: tuple[tuple[Process, str], ...] = ()


@dataclass
class HangWatch:
    """Told what the processes say and what the kernel says of them; asked at every wake-up, after what has arrived was told."""

    stall_seconds: float

    due: float = math.inf
    """When :meth:`look` wants to be called again, at the latest."""
    _next_ping: float = math.inf
    _pulses: dict[Process, _Pulse] = field(default_factory=dict)
    _stops: dict[Process, _Stop] = field(default_factory=dict)

    def answered(self, process: Process, pong: Pong, *, now: float) -> None:
        """One that is not asked any more has nothing to prove."""
        pulse = self._pulses.get(process)
        if pulse is None:
            return
        pulse.asked_at = math.inf
        if not pong.requests:
            pulse.idle_since = math.inf
        elif pong.steps != pulse.steps or pulse.idle_since == math.inf:
            pulse.idle_since = now
        pulse.steps = pong.steps

    def stopped(self, process: Process, *, number: int, now: float) -> None:
        """A child of this launcher was stopped by this signal."""
        self._stops[process] = _Stop(number, since=now)

    def forget(self, process: Process) -> None:
        """It goes on, or it is gone."""
        self._stops.pop(process, None)

    def look(self, now: float, *, asked: Iterable[Process]) -> Look:
        """``asked``: those who have to answer as things are. Whoever is found hung is not watched any more."""
        period = self.stall_seconds / PINGS_PER_STALL
        if now > self.due + period:
            self._begin_anew(now)
        self._pulses = {process: self._pulses.get(process) or _Pulse() for process in asked}
        hung = self._hung(now)
        for process, _ in hung:
            self._stops.pop(process, None)
            self._pulses.pop(process, None)
        ask: tuple[Process, ...] = ()
        if not self._pulses:
            self._next_ping = math.inf
        elif self._next_ping == math.inf:
            self._next_ping = now + period
        elif now >= self._next_ping:
            self._next_ping = now + period
            ask = tuple(process for process, pulse in self._pulses.items() if pulse.asked_at == math.inf)
            for process in ask:
                self._pulses[process].asked_at = now
        waits = [pulse.asked_at for pulse in self._pulses.values()] + [stop.since for stop in self._stops.values()]
        self.due = min([self._next_ping, *(since + self.stall_seconds for since in waits)])
        return Look(ask, hung)

    def _begin_anew(self, now: float) -> None:
        for pulse in self._pulses.values():
            pulse.asked_at = max(pulse.asked_at, now)
            pulse.idle_since = max(pulse.idle_since, now)
        for stop in self._stops.values():
            stop.since = now

    def _hung(self, now: float) -> tuple[tuple[Process, str], ...]:
        seconds = self.stall_seconds
        reasons = {}
        for process, pulse in self._pulses.items():
            if now >= pulse.asked_at + seconds:
                reasons[process] = f"has not answered for {seconds:g} s"
            elif now >= pulse.idle_since + seconds:
                reasons[process] = f"has requests and has computed no step for {seconds:g} s"
        for process, stop in self._stops.items():
            if now >= stop.since + seconds:
                name = signal.Signals(stop.number).name
                reasons[process] = f"was stopped by {name} and not continued for {seconds:g} s"
        return tuple(reasons.items())
