"""The monitor's socket: the launcher connects and hands over the pipes of the pod (``docs/wire-protocol.md`` section 3).

Invariants: a pipe's read end is watched and never read, because the launcher watches it too; received descriptors never leak; a
launcher that connects anew hands over everything, so what an earlier connection brought is dropped first. Never blocks, and has
no reason to wake when nothing happens. Does not judge: :class:`Listener` does.
"""

from __future__ import annotations

import array
import fcntl
import json
import logging
import os
import select
import socket
import struct
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

logger = logging.getLogger("enginehouse.monitor")

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 64 * 1024
_MOST_DESCRIPTORS: Final = 4

Identity = tuple[str, int | None, int, int]
"""Role, rank, index, incarnation."""


class BadMessage(Exception):
    """Not what the protocol allows."""


class Listener(Protocol):
    """Who is told."""

    def launcher_came(self, *, pid: int) -> None:
        """``hello``; everything else follows."""

    def exited(self, identity: Identity, message: Mapping[str, Any]) -> None:
        """A process is gone."""

    def state(self, message: Mapping[str, Any]) -> None:
        """The whole state of the engine."""

    def pipe_closed(self, identity: Identity | None, *, pid: int, bye: bool) -> None:
        """A process is dying; None = the launcher."""


@dataclass
class Poller:
    """epoll with a callback per descriptor."""

    _epoll: select.epoll = field(default_factory=select.epoll)
    _callbacks: dict[int, Callable[[], None]] = field(default_factory=dict)

    def watch(self, descriptor: int, callback: Callable[[], None], *, events: int = select.EPOLLIN) -> None:
        """Events 0 = only when the other side has closed."""
        self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def forget(self, descriptor: int) -> None:
        """Before it is closed."""
        del self._callbacks[descriptor]
        self._epoll.unregister(descriptor)

    def wait(self, *, timeout_seconds: float | None = None) -> None:
        """Sleep until something happens (None = for ever), and tell it."""
        ready = [(descriptor, self._callbacks[descriptor]) for descriptor, _ in self._epoll.poll(timeout_seconds)]
        for descriptor, callback in ready:
            # An earlier callback may have closed it, and its number may be another's by now.
            if self._callbacks.get(descriptor) is callback:
                callback()


@dataclass
class _Pipe:
    pid: int
    read_end: int
    pidfd: int | None
    lost_lock: int | None
    """Hangs up as soon as the process begins to die, before its memory is released and the pipe closes."""
    watched: bool = True

    @property
    def hang_ups(self) -> list[int]:
        """The first of them is the death."""
        return [self.read_end] if self.lost_lock is None else [self.read_end, self.lost_lock]


class LauncherLink:
    """Listens on ``path`` from construction on."""

    def __init__(self, poller: Poller, path: Path, listener: Listener) -> None:
        self._poller = poller
        self._listener = listener
        self._connection: socket.socket | None = None
        self._pipes: dict[Identity | None, _Pipe] = {}
        path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._server.bind(str(path))
        path.chmod(0o660)
        self._server.listen(8)
        poller.watch(self._server.fileno(), self._accept)

    def send(self, message: dict[str, Any]) -> bool:
        """To the launcher that is connected and has said who it is; whether it was sent."""
        if self._connection is None or None not in self._pipes:
            return False
        try:
            self._connection.send(json.dumps(message).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            logger.warning("message %r was not sent to the launcher: %s", message["type"], error)
            return False
        return True

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except BlockingIOError:
            return
        self._disconnect()
        for identity in list(self._pipes):
            self._drop(identity)
        self._connection = connection
        self._poller.watch(connection.fileno(), self._read)

    def _read(self) -> None:
        while self._connection is not None:
            try:
                data, descriptors = _receive(self._connection)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # What was sent before is still in the queue.
            if not data:
                self._disconnect()
                return
            left = list(descriptors)
            try:
                self._take(_decode(data), left)
            except BadMessage as error:
                logger.error("ignored a message of the launcher: %s", error)
            for descriptor in left:
                os.close(descriptor)

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Descriptors that are kept are taken out of the list. Raises BadMessage."""
        match message["type"]:
            case "hello":
                if message.get("version") != VERSION:
                    raise BadMessage(f"this monitor speaks version {VERSION}, the launcher {message.get('version')}")
                self._keep(None, _number(message, "pid"), descriptors, wanted=(1,))
                self._listener.launcher_came(pid=message["pid"])
            case "process":
                self._keep(_identity(message), _number(message, "pid"), descriptors, wanted=(2, 3))
            case "exited":
                identity = _identity(message)
                pipe = self._pipes.get(identity)
                if pipe is not None and pipe.watched and any(_has_hung_up(end) for end in pipe.hang_ups):
                    # Both came while this process slept: the pipe closed, or the lock was lost, first.
                    self._hung_up(identity, pipe)
                self._listener.exited(identity, message)
                self._drop(identity)
            case "state":
                lists = (
                    _are_numbered(message.get("ranks"), by="rank"),
                    _are_numbered(message.get("apiServers", []), by="index"),
                    _is_placement(message.get("placement", [])),
                )
                if not isinstance(message.get("state"), str) or not all(lists):
                    raise BadMessage(f"'state' wants a state, and lists of ranks, API servers and placement, found {message!r}")
                self._listener.state(message)
            case _:
                pass  # A newer launcher may say more.

    def _keep(self, identity: Identity | None, pid: int, descriptors: list[int], *, wanted: tuple[int, ...]) -> None:
        if len(descriptors) not in wanted:
            raise BadMessage(f"{' or '.join(map(str, wanted))} descriptors were to come, found {len(descriptors)}")
        self._drop(identity)
        read_end, *others = descriptors
        pidfd, lost_lock = (*others, None, None)[:2]
        pipe = _Pipe(pid=pid, read_end=read_end, pidfd=pidfd, lost_lock=lost_lock)
        descriptors.clear()
        self._pipes[identity] = pipe
        for descriptor in pipe.hang_ups:
            self._poller.watch(descriptor, lambda: self._hung_up(identity, pipe), events=0)

    def _hung_up(self, identity: Identity | None, pipe: _Pipe) -> None:
        self._unwatch(pipe)
        bye = _bytes_waiting(pipe.read_end) > 0
        if identity is None:
            self._read()  # What the launcher said before it died comes first.
            for other in self._pipes.keys() - {None}:
                self._drop(other)  # Their ends follow, and nobody is left to say why.
        self._listener.pipe_closed(identity, pid=pipe.pid, bye=bye)

    def _drop(self, identity: Identity | None) -> None:
        pipe = self._pipes.pop(identity, None)
        if pipe is None:
            return
        if pipe.watched:
            self._unwatch(pipe)
        for descriptor in (*pipe.hang_ups, *([] if pipe.pidfd is None else [pipe.pidfd])):
            os.close(descriptor)

    def _unwatch(self, pipe: _Pipe) -> None:
        for descriptor in pipe.hang_ups:
            self._poller.forget(descriptor)
        pipe.watched = False

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._poller.forget(self._connection.fileno())
            self._connection.close()
            self._connection = None


def _receive(connection: socket.socket) -> tuple[bytes, array.array[int]]:
    data, ancillary, _, _ = connection.recvmsg(
        MAX_MESSAGE_BYTES, socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    return data, descriptors


def _decode(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"{error}: {data[:200]!r}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BadMessage(f"a message is a JSON object with a type, found {data[:200]!r}")
    return message


def _identity(message: dict[str, Any]) -> Identity:
    role = message.get("role")
    if not isinstance(role, str):
        raise BadMessage(f"{message['type']!r} wants a role, found {role!r}")
    rank = None if message.get("rank") is None else _number(message, "rank")
    return role, rank, _number(message, "index"), _number(message, "incarnation")


def _number(message: dict[str, Any], key: str) -> int:
    value = message.get(key)
    if not isinstance(value, int):
        raise BadMessage(f"{message['type']!r} wants a number in {key!r}, found {value!r}")
    return value


def _are_numbered(things: Any, *, by: str) -> bool:
    return isinstance(things, list) and all(isinstance(thing, dict) and isinstance(thing.get(by), int) for thing in things)


def _is_placement(groups: Any) -> bool:
    return _are_numbered(groups, by="rank") and all(_are_numbered(group.get("bundles", []), by="index") for group in groups)


def _has_hung_up(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, 0)
    return bool(poller.poll(0))


def _bytes_waiting(descriptor: int) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * struct.calcsize("i")))[0]
    return count
