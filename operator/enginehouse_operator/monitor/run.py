"""The monitor's one loop: what the launcher and the pipes say becomes the row; what the replica's object says goes to the launcher.

Invariants: the launcher hears ``stored`` only when the row with this pod's UID is in the API; whatever has happened, the row is
wanted and the launcher is told before the next sleep, from what is so and not from what has changed; the loop sleeps in epoll, and
has a timer only for the moment after a death in another pod; a death is noticed at once, however slow the API is (writer and
watch are threads of their own). Does not decide what the launcher is told: ``peers.py`` does.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from enginehouse_operator.monitor import peers
from enginehouse_operator.monitor import row as rows
from enginehouse_operator.monitor.api import RowApi
from enginehouse_operator.monitor.connection import Access
from enginehouse_operator.monitor.link import Identity, LauncherLink, Poller
from enginehouse_operator.monitor.peers import Order
from enginehouse_operator.monitor.row import Row
from enginehouse_operator.monitor.watch import ReplicaWatch, Seen
from enginehouse_operator.monitor.writer import RowWriter, Written, WrittenElsewhere

logger = logging.getLogger("enginehouse.monitor")

FINISH_SECONDS: Final = 1.5
"""The kubelet kills a sidecar two seconds after SIGTERM when the pod's grace period is used up."""
TOLD_SECONDS: Final = 0.05
"""A pod that was only told of a death leaves the API for so long to the one where it happened: several rows of one replica that are
written at once hold each other up there, and everybody waits for that one.
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Whom this monitor reports for, and to whom."""

    socket: Path
    namespace: str
    replica: str
    replica_uid: str
    member: str
    pod_uid: str
    pod_address: str
    access: Access
    leads: bool = False
    """Its launcher decides about ranks that come and go."""
    log_format: str = "text"


class Monitor:
    """One pod's; :meth:`run` is called once."""

    def __init__(self, settings: Settings) -> None:
        self._poller = Poller()
        self._replica_uid = settings.replica_uid
        self._leads = settings.leads
        self._row = Row(name=settings.member, uid=settings.pod_uid, address=settings.pod_address)
        self._wanted: Row | None = None
        """The row as the writer knows it."""
        self._seen: Seen | None = None
        self._is_stored = False
        self._heard_state = False
        self._detected: dict[Identity, str] = {}
        """When the pipes of those closed of whose deaths the cause is still to come."""
        self._write_at = 0.0
        """Not before (monotonic)."""
        self._told: set[Order] = set()
        """To the launcher that is connected."""
        self._dead_elsewhere: frozenset[tuple[int, str]] = frozenset()
        self._is_asked_to_stop = False
        api = RowApi(
            access=settings.access,
            namespace=settings.namespace,
            replica=settings.replica,
            replica_uid=settings.replica_uid,
            field_manager=settings.member,
        )
        self._writer = RowWriter(api, now=_now)
        self._watch = ReplicaWatch(settings.access, namespace=settings.namespace, replica=settings.replica)
        self._watch_signals()
        self._poller.watch(self._writer.event, self._writer_said)
        self._poller.watch(self._watch.event, self._watch_said)
        self._link = LauncherLink(self._poller, settings.socket, self)

    def run(self) -> None:
        """Until SIGTERM."""
        threading.excepthook = _crash
        self._writer.start()
        self._watch.start()
        while not self._is_asked_to_stop:
            self._poller.wait(timeout_seconds=self._patience_seconds())
            self._bring_up_to_date()
        # The launcher's last words may have come with the signal.
        self._poller.wait(timeout_seconds=0)
        self._write_at = 0.0
        self._bring_up_to_date()
        if not self._writer.finish(deadline_seconds=FINISH_SECONDS):
            logger.error("the last row could not be written in %g s", FINISH_SECONDS)

    # What the launcher says

    def launcher_came(self, *, pid: int) -> None:
        """See Listener."""
        logger.info("the launcher is here, pid %d", pid)
        self._told.clear()

    def exited(self, identity: Identity, message: Mapping[str, Any]) -> None:
        """See Listener."""
        detected = self._detected.pop(identity, None)
        if message.get("planned") is True:
            return
        by, when = (rows.BY_LAUNCHER, _now()) if detected is None else (rows.BY_PIPE, detected)
        self._row = rows.with_failure(self._row, rows.failure(message, detected_by=by, detected_time=when))

    def state(self, message: Mapping[str, Any]) -> None:
        """See Listener."""
        self._heard_state = True
        row = rows.with_state(self._row, message)
        if rows.was_told_of_a_death(self._row, row, noticed={rank for _, rank, _, _ in self._detected}):
            self._write_at = time.monotonic() + TOLD_SECONDS
        self._row = row

    def pipe_closed(self, identity: Identity | None, *, pid: int, bye: bool) -> None:
        """See Listener."""
        if bye:
            return
        if identity is not None:
            # The launcher's word on the cause follows: it reaps the process.
            self._detected[identity] = _now()
            return
        logger.error("the launcher died, pid %d", pid)
        self._detected.clear()
        row = rows.with_failure(self._row, rows.launcher_failure(pid=pid, detected_time=_now()))
        self._row = rows.with_launcher_gone(row)

    # What the API says

    def _watch_said(self) -> None:
        was_read = self._seen is not None
        self._seen = seen = self._watch.take()
        if seen is None or seen.replica is None or not self._is_ours():
            return
        found = rows.found_in(seen.replica, name=self._row.name, uid=self._row.uid)
        if found is not None and not was_read:
            self._row = rows.adopted(self._row, found, heard_state=self._heard_state)
        dead = peers.dead_elsewhere(seen.replica, own_name=self._row.name)
        for rank, member in sorted(dead - self._dead_elsewhere):
            logger.info("rank %d is dead in %s", rank, member)
        self._dead_elsewhere = dead
        self._writer.saw(found, version=str(seen.replica["metadata"]["resourceVersion"]))
        self._is_stored = self._is_stored or found is not None

    def _writer_said(self) -> None:
        for outcome in self._writer.outcomes():
            match outcome:
                case Written():
                    self._is_stored = True
                case WrittenElsewhere(uid=uid):
                    self._seen = Seen({"metadata": {"uid": uid}})

    # What follows

    def _bring_up_to_date(self) -> None:
        if self._is_ours() and self._row != self._wanted and self._patience_seconds() is None:
            self._wanted = self._row
            self._writer.want(self._row)
        for order in self._orders():
            if order not in self._told and self._link.send(order.message()):
                if order.reason == peers.RESIZED:
                    # The number before last may be wanted again.
                    self._told = {told for told in self._told if told.reason != peers.RESIZED}
                self._told.add(order)
                logger.info("%s: told the launcher %s", order.reason, order.message())

    def _orders(self) -> tuple[Order, ...]:
        if self._seen is None:
            return ()
        found = peers.orders(self._row, self._seen.replica, replica_uid=self._replica_uid)
        if not self._is_stored or any(order.reason in (peers.REPLICA_DELETED, peers.POD_REPLACED) for order in found):
            return found
        # Nothing is to be started that would be ended at once.
        return (*(found or (Order(peers.BORN),)), *(peers.resized(self._seen.replica or {}) if self._leads else ()))

    def _is_ours(self) -> bool:
        """The replica was read, is there, and is the one that this pod belongs to."""
        if self._seen is None or self._seen.replica is None:
            return False
        return not peers.is_foreign(self._seen.replica, name=self._row.name, uid=self._row.uid, replica_uid=self._replica_uid)

    def _patience_seconds(self) -> float | None:
        """How long a row that has changed still waits; None = not at all."""
        if self._row == self._wanted or not self._is_ours():
            return None
        left = self._write_at - time.monotonic()
        return left if left > 0 else None

    def _watch_signals(self) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

        def asked_to_stop() -> None:
            os.read(read_end, 4096)
            self._is_asked_to_stop = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._poller.watch(read_end, asked_to_stop)


def _crash(arguments: threading.ExceptHookArgs) -> None:
    """A monitor that cannot write or see is of no use: the kubelet starts a new one, which is handed everything over again."""
    logger.critical("%s failed", arguments.thread.name if arguments.thread else "a thread", exc_info=arguments.exc_value)
    os._exit(70)


def _now() -> str:
    """RFC 3339 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
