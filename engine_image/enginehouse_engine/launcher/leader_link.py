"""A member's end of the link to its leader's launcher (``docs/wire-protocol.md`` section 7).

Invariant: it is tried until the leader listens, and then connected once: a connection that was let in and broke is the end.
The leader's name may not lead anywhere yet. Looking it up, and each try, blocks this launcher for seconds at most; it owns no
process until it is let in. Does not decide how long it is tried (``member_lifecycle.py``).
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from typing import Final

from enginehouse_engine.launcher import member_messages
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.framed_link import FramedLink
from enginehouse_engine.launcher.member_links import MEMBERS_PORT
from enginehouse_engine.launcher.member_messages import FromLeader, Hello, Report
from enginehouse_engine.launcher.messages import MessageError

logger = logging.getLogger("enginehouse.launcher")

FIRST_RETRY_SECONDS: Final = 0.1
LONGEST_RETRY_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 2.0


class LeaderLink:
    """Silent until :meth:`begin`."""

    def __init__(
        self,
        host: str,
        loop: EventLoop,
        *,
        hello: Hello,
        report: Callable[[], Report],
        heard: Callable[[FromLeader], None],
        lost: Callable[[str], None],
    ) -> None:
        self.retry_at = math.inf
        self.address = ""
        """Of this member, as the leader sees it: where its workers can be reached."""
        self._host = host
        self._loop = loop
        self._hello = hello
        self._report = report
        self._heard = heard
        self._lost = lost
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._link: FramedLink | None = None
        self._told: Report | None = None

    def begin(self) -> None:
        """From now on the leader is looked for."""
        self.retry_at = -math.inf

    def bring_up_to_date(self, now: float) -> None:
        """Connect if it is due; tell the leader how things are, if it was not told yet."""
        if now >= self.retry_at:
            self._connect(now)
        if self._link is not None and self._link.is_open and (report := self._report()) != self._told:
            self._told = report
            self._link.send(report)

    def _connect(self, now: float) -> None:
        try:
            connection = socket.create_connection((self._host, MEMBERS_PORT), timeout=_CONNECT_SECONDS)
        except (OSError, UnicodeError) as error:
            if self._retry_seconds == FIRST_RETRY_SECONDS:
                logger.info("the leader at %s is not there yet: %s", self._host, error)
            self.retry_at = now + self._retry_seconds
            self._retry_seconds = min(LONGEST_RETRY_SECONDS, 2 * self._retry_seconds)
            return
        self.retry_at = math.inf
        self.address = connection.getsockname()[0]
        self._link = FramedLink(connection, self._loop, heard=self._take, lost=self._lost)
        self._link.send(self._hello)

    def _take(self, data: bytes) -> None:
        try:
            message = member_messages.decode_from_leader(data)
        except MessageError as error:
            if self._link is not None:
                self._link.close()
            self._lost(f"it said what it may not: {error}")
            return
        if message is not None:
            self._heard(message)
