"""The launcher's socket: processes register here, and control messages go both ways (``docs/wire-protocol.md`` section 2).

Invariant: the pipe's read end is watched and never read, because launcher and monitor share it and what one reads the other
never sees. ``bye`` is told by the bytes that lie in it when the process dies. Does not decide anything.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import stat
import struct
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from enginehouse_engine.launcher import datagrams, messages
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.held_lock import hang_up_at_loss
from enginehouse_engine.launcher.process import Process

logger = logging.getLogger("enginehouse.launcher")

_LOST_SECONDS: Final = 0.5
"""For a thread that waits for a lost lock to say so."""
_MOST_MESSAGES: Final = 64
"""Of one process in one turn."""


class ControlListener(Protocol):
    """Who is told."""

    def may_register(self, process: Process, *, pid: int) -> str:
        """Why not; empty = it may."""

    def output_of(self, process: Process) -> int | None:
        """A descriptor that is to be its standard output and error from now on, and is closed here; None = it has them."""

    def registered(self, process: Process, *, pid: int, descriptors: tuple[int, ...]) -> None:
        """Read end, pidfd and, where there is one, the hang-up of its lock: the server's, until :meth:`ControlServer.forget`."""

    def said(self, process: Process, message: messages.FromProcess) -> None:
        """A message of a registered process."""

    def pipe_closed(self, process: Process, *, bye: bool) -> None:
        """The process is dying."""


@dataclass
class _Link:
    connection: socket.socket
    read_end: int
    pidfd: int
    lost_lock: int | None
    """Hangs up as soon as the process begins to die; None = only the pipe tells."""
    pipe_watched: bool = True
    connected: bool = True

    @property
    def hang_ups(self) -> tuple[int, ...]:
        """The first of them is the death."""
        return (self.read_end,) if self.lost_lock is None else (self.read_end, self.lost_lock)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """In the order of the protocol."""
        return (self.read_end, self.pidfd, *self.hang_ups[1:])


class ControlServer:
    """Listens on ``path`` from construction on."""

    def __init__(self, loop: EventLoop, path: Path, listener: ControlListener) -> None:
        self._loop = loop
        self._listener = listener
        self._links: dict[Process, _Link] = {}
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._server.bind(str(path))
        self._server.listen(128)
        loop.watch(self._server.fileno(), self._accept)

    def send(self, process: Process, message: dict[str, Any]) -> None:
        """Send it, if the process is there to hear: one that is not is dying, and its exit tells so."""
        link = self._links.get(process)
        if link is None or not link.connected:
            return
        try:
            datagrams.send(link.connection, message)
        except datagrams.Closed as error:
            logger.warning("%s: %s", process, error)

    def drain(self, process: Process) -> bool:
        """Before its exit is judged, tell everything that ``process`` has said, and that its end has begun; whether it registered.

        A descendant that has got hold of the write end keeps the pipe from telling that itself. The monitor has been told as well
        then, by the lock: whoever waits for it may come later than this thread, and is let before it.
        """
        link = self._links.get(process)
        if link is None:
            return False
        if link.lost_lock is not None:
            _wait_for_hang_up(link.lost_lock)
        self._read(process, link)
        if link.pipe_watched:
            self._hung_up(process, link)
        return True

    def forget(self, process: Process) -> None:
        """The process is reaped: give its descriptors back."""
        link = self._links.pop(process, None)
        if link is None:
            return
        self._disconnect(link)
        if link.pipe_watched:
            self._unwatch(link)
        datagrams.close_all(link.descriptors)

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except BlockingIOError:
            return
        self._loop.watch(connection.fileno(), lambda: self._register(connection))

    def _register(self, connection: socket.socket) -> None:
        """The first message of a connection."""
        descriptors: tuple[int, ...] = ()
        try:
            datagram = datagrams.receive(connection)
            if datagram is None:
                return
            descriptors = datagram.descriptors
            process, pid = _identity(datagram, connection)
            if refusal := self._listener.may_register(process, pid=pid):
                raise messages.MessageError(refusal)
            self._welcome(connection, self._listener.output_of(process))
        except (messages.MessageError, datagrams.Closed) as error:
            logger.warning("a registration was refused: %s", error)
            self._loop.forget(connection.fileno())
            datagrams.close_all(descriptors)
            _refuse(connection, str(error))
            return
        read_end, pidfd, *lock = descriptors
        link = _Link(connection=connection, read_end=read_end, pidfd=pidfd, lost_lock=_hang_up_of(process, lock))
        datagrams.close_all(lock)
        self._links[process] = link
        self._loop.forget(connection.fileno())
        self._loop.watch(connection.fileno(), lambda: self._hear(process, link))
        for descriptor in link.hang_ups:
            self._loop.watch(descriptor, lambda: self._hung_up(process, link), events=0)
        self._listener.registered(process, pid=pid, descriptors=link.descriptors)

    def _welcome(self, connection: socket.socket, output: int | None) -> None:
        handed = () if output is None else (output,)
        try:
            datagrams.send(connection, {"type": "registered", "message": ""}, handed)
        finally:
            datagrams.close_all(handed)

    def _hear(self, process: Process, link: _Link) -> None:
        """Not all that it says, if it says much: others wait for their turn, and the next one goes on."""
        for _ in range(_MOST_MESSAGES):
            if not self._take(process, link):
                return

    def _read(self, process: Process, link: _Link) -> None:
        """Of one that is dying: all that it has said."""
        while self._take(process, link):
            pass

    def _take(self, process: Process, link: _Link) -> bool:
        """One message; whether there may be more."""
        if not link.connected:
            return False
        try:
            datagram = datagrams.receive(link.connection)
            if datagram is None:
                return False
            datagrams.close_all(datagram.descriptors)
            message = messages.decode_from_process(datagram.data)
        except datagrams.Closed:
            self._disconnect(link)
            return False
        except messages.MessageError as error:
            logger.error("ignored a message of %s: %s", process, error)
            return True
        if message is not None:
            self._listener.said(process, message)
        return True

    def _hung_up(self, process: Process, link: _Link) -> None:
        self._unwatch(link)
        self._read(process, link)
        self._listener.pipe_closed(process, bye=_bytes_waiting(link.read_end) > 0)

    def _unwatch(self, link: _Link) -> None:
        for descriptor in link.hang_ups:
            self._loop.forget(descriptor)
        link.pipe_watched = False

    def _disconnect(self, link: _Link) -> None:
        if link.connected:
            link.connected = False
            self._loop.forget(link.connection.fileno())
            link.connection.close()


def _identity(datagram: datagrams.Datagram, connection: socket.socket) -> tuple[Process, int]:
    """Who registers, and the pid that the kernel knows it by. Raises MessageError."""
    message = messages.decode_from_process(datagram.data)
    if not isinstance(message, messages.Register):
        raise messages.MessageError(f"the first message must be 'register', found {datagram.data[:200]!r}")
    if message.version != messages.VERSION:
        raise messages.MessageError(f"this launcher speaks version {messages.VERSION}, the process {message.version}")
    if len(datagram.descriptors) not in (2, 3):
        raise messages.MessageError(
            f"'register' comes with a pipe's read end, a pidfd and perhaps a lock, found {len(datagram.descriptors)} descriptors"
        )
    if not stat.S_ISFIFO(os.fstat(datagram.descriptors[0]).st_mode):
        raise messages.MessageError("the first descriptor of 'register' must be the read end of a pipe")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", credentials)
    process = Process(role=message.role, rank=message.rank, index=message.index, incarnation=message.incarnation)
    return process, pid


def _hang_up_of(process: Process, lock: list[int]) -> int | None:
    """Of the process's lock, if it has one that is good for it."""
    try:
        return hang_up_at_loss(lock[0]) if lock else None
    except ValueError as error:
        logger.error("only its pipe tells of the death of %s: %s", process, error)
        return None


def _refuse(connection: socket.socket, reason: str) -> None:
    try:
        datagrams.send(connection, {"type": "refused", "message": reason})
    except datagrams.Closed:
        logger.info("a refused process had left already")
    connection.close()


def _wait_for_hang_up(descriptor: int) -> None:
    """Of a lock whose holder is dead, which is due at once; not for long, where nobody can wait for the lock."""
    poller = select.poll()
    poller.register(descriptor, 0)
    poller.poll(_LOST_SECONDS * 1000)


def _bytes_waiting(descriptor: int) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * struct.calcsize("i")))[0]
    return count
