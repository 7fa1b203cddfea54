"""Keeps the API's row equal to the wanted one, in a thread of its own, so that a slow API never delays the noticing of a death.

Invariants: the newest wanted row is written, those between are skipped; before the first write, and after each conflict, the
replica is read and this pod's right to the row is checked; without something to write the thread sleeps without a timer.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from enginehouse_operator.monitor import row as rows
from enginehouse_operator.monitor.api import Conflict, Gone, Rejected, Replaced, ReplicaApi, Unavailable
from enginehouse_operator.monitor.row import ForeignRow, Row

logger = logging.getLogger("enginehouse.monitor")

FIRST_RETRY_SECONDS: Final = 0.1
LONGEST_RETRY_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Read:
    """The replica was read for the first time; ``row`` is what an earlier life of this monitor wrote, or None."""

    row: Row | None


@dataclass(frozen=True)
class Written:
    """The API has the row that was wanted."""


@dataclass(frozen=True)
class Ended:
    """Nothing will be written any more. ``replaced`` = another replica or pod has this name, so nothing of this pod may go on."""

    reason: str
    replaced: bool


Outcome = Read | Written | Ended


class RowWriter:
    """``event`` is an eventfd that becomes readable whenever :meth:`outcomes` has something."""

    def __init__(self, api: ReplicaApi, *, member: str, uid: str, now: Callable[[], str]) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._api = api
        self._member = member
        self._uid = uid
        self._now = now
        self._changed = threading.Condition()
        self._wanted: Row | None = None
        self._stored: Row | None = None
        self._rejected: Row | None = None
        self._outcomes: list[Outcome] = []
        self._version: str | None = None
        self._unread = True
        self._finishing = False
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._thread = threading.Thread(target=self._run, name="row-writer", daemon=True)

    def start(self) -> None:
        """Read the replica: the outcome Read follows. What is wanted is said after it."""
        self._thread.start()

    def want(self, row: Row) -> None:
        """This is the row now."""
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
            self._begin()
            while (row := self._next()) is not None:
                self._attempt(row)
        except (Gone, ForeignRow) as error:
            self._tell(Ended(str(error), replaced=isinstance(error, Replaced | ForeignRow)))
        finally:
            self._api.close()

    def _begin(self) -> None:
        while self._unread:
            try:
                self._stored = self._read()
            except Unavailable as error:
                self._pause(error)
        self._tell(Read(self._stored))

    def _attempt(self, row: Row) -> None:
        try:
            if self._unread:
                self._read()
            self._write(row)
        except Conflict as error:
            self._unread = True
            self._pause(error)
        except Unavailable as error:
            self._pause(error)
        except Rejected as error:
            logger.error("the row was refused, and stays as it is until something changes: %s", error)
            self._rejected = row

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

    def _read(self) -> Row | None:
        """This pod's row as it is. From here on the next write is only good for the replica as it was read."""
        replica = self._api.read()
        found = rows.found_in(replica, name=self._member, uid=self._uid)
        self._version = replica["metadata"]["resourceVersion"]
        self._unread = False
        return found

    def _write(self, row: Row) -> None:
        if self._stored is not None:
            row = rows.acknowledged(row, self._stored)
        row = rows.stamped(row, reported_time=self._now())
        self._api.apply(row, resource_version=self._version)
        # The first write made sure that no other pod had the row. From then on it is this pod's.
        self._version = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        with self._changed:
            self._stored = row
        self._tell(Written())

    def _tell(self, outcome: Outcome) -> None:
        with self._changed:
            self._outcomes.append(outcome)
            if len(self._outcomes) == 1:
                os.eventfd_write(self.event, 1)

    def _pause(self, error: Exception) -> None:
        """Wait before the next attempt, with the jitter that keeps many monitors apart. A changed row does not shorten it."""
        logger.warning("trying again: %s", error)
        time.sleep(self._retry_seconds * random.uniform(0.5, 1.0))
        self._retry_seconds = min(LONGEST_RETRY_SECONDS, 2 * self._retry_seconds)
