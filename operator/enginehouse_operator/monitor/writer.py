"""Keeps the API's row equal to the wanted one, in a thread of its own, so that a slow API never delays the noticing of a death.

Invariants: the newest wanted row is written, those between are skipped; the row is born only in the very version of the replica
that was last seen without it; without something to write the thread sleeps without a timer. Does not read: the watch does.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from enginehouse_operator.monitor import row as rows
from enginehouse_operator.monitor.api import Conflict, Rejected, Replaced, RowApi
from enginehouse_operator.monitor.connection import Unavailable
from enginehouse_operator.monitor.row import Row

logger = logging.getLogger("enginehouse.monitor")

FIRST_RETRY_SECONDS: Final = 0.1
LONGEST_RETRY_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Written:
    """The API has the row that was wanted."""


@dataclass(frozen=True)
class WrittenElsewhere:
    """The replica of this name has another UID; the row was taken back."""

    uid: str


Outcome = Written | WrittenElsewhere


class RowWriter:
    """``event`` is an eventfd that becomes readable whenever :meth:`outcomes` has something."""

    def __init__(self, api: RowApi, *, now: Callable[[], str]) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._api = api
        self._now = now
        self._changed = threading.Condition()
        self._wanted: Row | None = None
        self._stored: Row | None = None
        self._rejected: Row | None = None
        self._outcomes: list[Outcome] = []
        self._version: str | None = None
        """The next write is only good for this version of the replica; None = for any."""
        self._finishing = False
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._thread = threading.Thread(target=self._run, name="row-writer", daemon=True)

    def start(self) -> None:
        """Write what is wanted from now on."""
        self._thread.start()

    def saw(self, row: Row | None, *, version: str) -> None:
        """This pod's row in the replica as it was read; None = it is not born. Of interest until it is."""
        with self._changed:
            if self._stored is None:
                self._stored, self._version = row, version if row is None else None

    def want(self, row: Row) -> None:
        """This is the row now; the replica was seen."""
        with self._changed:
            self._wanted = row
            self._changed.notify()

    def outcomes(self) -> list[Outcome]:
        """What happened since the last call."""
        with self._changed:
            taken, self._outcomes = self._outcomes, []
            if taken:
                os.eventfd_read(self.event)
            return taken

    def finish(self, *, deadline_seconds: float) -> bool:
        """Write what is still to be written and end; False when the deadline came first."""
        with self._changed:
            self._finishing = True
            self._changed.notify()
        self._thread.join(deadline_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (row := self._next()) is not None:
                self._attempt(row)
        finally:
            self._api.close()

    def _attempt(self, row: Row) -> None:
        try:
            self._write(row)
        except (Conflict, Unavailable) as error:
            self._pause(error)
        except Rejected as error:
            logger.error("the row was refused, and stays as it is until something changes: %s", error)
            self._rejected = row
        except Replaced as error:
            self._rejected = row
            self._tell(WrittenElsewhere(error.uid))

    def _next(self) -> Row | None:
        """Sleep until there is a row to write; None = finish."""
        with self._changed:
            while self._wanted is None or self._wanted == self._rejected or self._settled(self._wanted):
                if self._finishing:
                    return None
                self._changed.wait()
            return self._wanted

    def _settled(self, row: Row) -> bool:
        return self._stored is not None and rows.acknowledged(row, self._stored) == self._stored

    def _write(self, row: Row) -> None:
        with self._changed:
            stored, version = self._stored, self._version
        if stored is not None:
            row = rows.acknowledged(row, stored)
        row = rows.stamped(row, reported_time=self._now())
        self._api.apply(row, resource_version=version)
        self._retry_seconds = FIRST_RETRY_SECONDS
        with self._changed:
            # The first write made sure that no other pod had the row. From then on it is this pod's.
            self._stored, self._version = row, None
        self._tell(Written())

    def _tell(self, outcome: Outcome) -> None:
        with self._changed:
            self._outcomes.append(outcome)
            if len(self._outcomes) == 1:
                os.eventfd_write(self.event, 1)

    def _pause(self, error: Exception) -> None:
        """Wait before the next attempt, with the jitter that keeps many monitors apart. A changed row does not shorten it; the
        monitor's end does, since after it nobody tries again."""
        logger.warning("trying again: %s", error)
        with self._changed:
            is_last_chance = self._finishing
            if is_last_chance:
                self._retry_seconds = FIRST_RETRY_SECONDS
            seconds = self._retry_seconds * random.uniform(0.5, 1.0)
            self._changed.wait_for(lambda: self._finishing and not is_last_chance, seconds)
        self._retry_seconds = min(LONGEST_RETRY_SECONDS, 2 * self._retry_seconds)
