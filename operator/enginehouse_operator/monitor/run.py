"""The monitor's one loop: what the launcher and the pipes say becomes the row, and what the API says goes to the launcher.

Invariants: the launcher hears ``stored`` only when the row with this pod's UID is in the API; the loop sleeps in epoll without a
timer; a death is noticed at once, however slow the API is (the writer is a thread of its own).
Not here yet: the watch on this pod's own EngineReplica (drain when it is deleted, abort what peers' deaths make useless).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from enginehouse_operator.monitor import row as rows
from enginehouse_operator.monitor.api import Access, ReplicaApi
from enginehouse_operator.monitor.link import Identity, LauncherLink, Poller
from enginehouse_operator.monitor.row import Row
from enginehouse_operator.monitor.writer import Ended, Read, RowWriter, Written

logger = logging.getLogger("enginehouse.monitor")

FINISH_SECONDS: Final = 1.5
"""The kubelet kills a sidecar two seconds after SIGTERM when the pod's grace period is used up."""


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


def run(settings: Settings) -> int:
    """Until SIGTERM (exit code 0) or until this pod must not go on (1)."""
    return Monitor(settings).run()


class Monitor:
    """One pod's; :meth:`run` is called once."""

    def __init__(self, settings: Settings) -> None:
        self._poller = Poller()
        self._row = Row(name=settings.member, uid=settings.pod_uid, address=settings.pod_address)
        api = ReplicaApi(
            access=settings.access,
            namespace=settings.namespace,
            replica=settings.replica,
            replica_uid=settings.replica_uid,
            field_manager=settings.member,
        )
        self._writer = RowWriter(api, member=settings.member, uid=settings.pod_uid, now=_now)
        self._read = False
        self._stored = False
        self._heard_state = False
        self._launcher_is_here = False
        self._detected: dict[Identity, str] = {}
        self._exit_code: int | None = None
        self._watch_signals()
        self._poller.watch(self._writer.event, self._writer_said)
        self._link = LauncherLink(self._poller, settings.socket, self)

    def run(self) -> int:
        """The exit code."""
        threading.excepthook = _crash
        self._writer.start()
        while self._exit_code is None:
            self._poller.wait()
        # The launcher's last words may have come with the signal.
        self._poller.wait(timeout_seconds=0)
        if not self._writer.finish(deadline_seconds=FINISH_SECONDS):
            logger.error("the last row could not be written in %g s", FINISH_SECONDS)
        return self._exit_code

    # What the launcher says

    def launcher_came(self, *, pid: int) -> None:
        """See Listener."""
        logger.info("the launcher is here, pid %d", pid)
        self._launcher_is_here = True
        if self._stored:
            self._link.send({"type": "stored"})

    def exited(self, identity: Identity, message: Mapping[str, Any]) -> None:
        """See Listener."""
        by_pipe = self._detected.pop(identity, None)
        if message.get("planned") is True:
            return
        by = rows.BY_LAUNCHER if by_pipe is None else rows.BY_PIPE
        self._change(rows.with_failure(self._row, rows.failure(message, detected_by=by, detected_time=by_pipe or _now())))

    def state(self, message: Mapping[str, Any]) -> None:
        """See Listener."""
        self._heard_state = True
        self._change(rows.with_state(self._row, message))

    def pipe_closed(self, identity: Identity | None, *, pid: int, bye: bool) -> None:
        """See Listener."""
        if bye:
            return
        if identity is not None:
            # The launcher's word on the cause follows: it reaps the process.
            self._detected[identity] = _now()
            return
        logger.error("the launcher died, pid %d", pid)
        row = rows.with_failure(self._row, rows.launcher_failure(pid=pid, detected_time=_now()))
        self._change(rows.with_state(row, {"state": "Failed", "ranks": [{**rank, "state": "Dead"} for rank in row.ranks]}))

    # What the API says

    def _writer_said(self) -> None:
        for outcome in self._writer.outcomes():
            match outcome:
                case Read(row=found):
                    self._read = True
                    if found is not None:
                        self._row = rows.adopted(self._row, found, heard_state=self._heard_state)
                        self._is_stored()
                    self._writer.want(self._row)
                case Written():
                    self._is_stored()
                case Ended(reason=reason, replaced=replaced):
                    self._ended(reason, replaced=replaced)

    def _is_stored(self) -> None:
        if not self._stored:
            self._stored = True
            logger.info("the row of this pod is in the API")
            if self._launcher_is_here:
                self._link.send({"type": "stored"})

    def _ended(self, reason: str, *, replaced: bool) -> None:
        logger.error("%s", reason)
        if not self._stored:
            self._exit_code = 1
        elif replaced:
            self._link.send({"type": "abort", "ranks": [rank["rank"] for rank in self._row.ranks]})
        # A replica that is gone takes its pods with it: the launcher gets its SIGTERM from the kubelet.

    def _change(self, row: Row) -> None:
        self._row = row
        if self._read:
            self._writer.want(row)

    def _watch_signals(self) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

        def asked_to_stop() -> None:
            os.read(read_end, 4096)
            self._exit_code = 0

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._poller.watch(read_end, asked_to_stop)


def _crash(arguments: threading.ExceptHookArgs) -> None:
    """A monitor that cannot write is of no use: the kubelet starts a new one, and the launcher hands everything over again."""
    logger.critical("the writer failed", exc_info=arguments.exc_value)
    os._exit(70)


def _now() -> str:
    """RFC 3339 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
