"""The leader's end of the links to the other members' launchers (``docs/wire-protocol.md`` section 7).

Invariant: whoever is let in says first who it is, and agrees with the leader in all that its workers depend on; each number is
given once. Does not decide what follows from what members say (``remote_workers.py``, ``lifecycle.py``).
"""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from enginehouse_engine.launcher import member_messages
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.framed_link import FramedLink
from enginehouse_engine.launcher.member_messages import Hello, Orders, Refused, Report
from enginehouse_engine.launcher.messages import MessageError

logger = logging.getLogger("enginehouse.launcher")

MEMBERS_PORT: Final = 7411
"""Of the pod's own network: it is part of the leader's name, so nobody has to be told of it."""
_MOST_STRANGERS: Final = 64
"""Connections that have not said who they are: the oldest gives way to a new one."""
_MOST_HELLO_BYTES: Final = 4096
"""Of what each of them may have this one keep."""


def own_name(leader: str) -> str:
    """Of the leader, as it can look it up itself: in a pod the kubelet has written down the host name, but not the DNS name.

    Of a pod that has addresses of both families it is the IPv4 one: the resolver gives the other first, where members, whose name
    for the leader is that of a service with one family, would not look.
    """
    try:
        ipaddress.ip_address(leader)
    except ValueError:
        return _ipv4_of(socket.gethostname())
    return leader


def _ipv4_of(host: str) -> str:
    """The name itself where it has none."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host


class MemberLinks:
    """Lets members in through ``door``; None = the leader is alone. ``heard`` may raise MessageError, which ends the link.

    ``lost`` is told why a link is gone, and whether because its member was silent.
    """

    def __init__(
        self,
        door: socket.socket | None,
        loop: EventLoop,
        *,
        expected: Hello,
        heard: Callable[[int, Report], None],
        lost: Callable[[int, str, bool], None],
        orders: Callable[[int], Orders],
    ) -> None:
        self.retry_at = math.inf
        self._loop = loop
        self._expected = expected
        self._heard = heard
        self._lost = lost
        self._orders = orders
        self._strangers: deque[FramedLink] = deque()
        self._members: dict[int, FramedLink] = {}
        self._told: dict[int, Orders] = {}
        if door is not None:
            door.setblocking(False)
            loop.watch(door.fileno(), lambda: self._accept(door))

    def bring_up_to_date(self, now: float) -> None:
        """Tell each member its orders, if they are not what it was told last."""
        for member, link in list(self._members.items()):
            orders = self._orders(member)
            if link.is_open and self._told.get(member) != orders:
                self._told[member] = orders
                link.send(orders)

    def _accept(self, door: socket.socket) -> None:
        try:
            connection, address = door.accept()
        except OSError:
            return  # It left before it was let in.
        link = FramedLink(
            connection,
            self._loop,
            heard=lambda data: self._introduced(link, data),
            lost=lambda reason: self._stranger_left(link, f"{address[0]}: {reason}"),
            first_most_bytes=_MOST_HELLO_BYTES,
        )
        if len(self._strangers) == _MOST_STRANGERS:
            self._strangers.popleft().close()
        self._strangers.append(link)

    def _stranger_left(self, link: FramedLink, reason: str) -> None:
        self._strangers.remove(link)
        logger.warning("a connection to the members' port came to nothing: %s", reason)

    def _introduced(self, link: FramedLink, data: bytes) -> None:
        """The first message of a connection."""
        self._strangers.remove(link)
        try:
            hello = member_messages.decode_from_member(data)
            if not isinstance(hello, Hello):
                raise MessageError(f"the first message must be 'hello', found {data[:200]!r}")
            # A member lives once; but with Ray one that has gone makes room for another of its number.
            lives = self._expected.executor != "Ray"
            joined = frozenset(number for number, other in self._members.items() if other.is_open or lives)
            if refusal := member_messages.reason_to_refuse(hello, expected=self._expected, joined=joined):
                raise MessageError(refusal)
        except MessageError as error:
            logger.warning("a member was refused: %s", error)
            link.send(Refused(str(error)))
            link.close()
            return
        number = hello.member
        logger.info("member %d has joined", number)
        self._members[number] = link
        self._told.pop(number, None)
        link.belongs_to(heard=lambda message: self._reported(number, message), lost=lambda reason: self._left(number, reason))

    def _reported(self, member: int, data: bytes) -> None:
        try:
            report = member_messages.decode_from_member(data)
            if isinstance(report, Report):
                self._heard(member, report)
        except MessageError as error:
            self._members[member].close()
            self._left(member, f"it said what it may not: {error}")

    def _left(self, member: int, reason: str) -> None:
        logger.info("the link to member %d is gone: %s", member, reason)
        self._lost(member, reason, self._members[member].was_silent)
