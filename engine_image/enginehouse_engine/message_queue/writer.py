"""The writing end of a queue: one stream of messages to every reader, on this node and elsewhere.

A message goes to all attached readers or to none: room for it is waited for before anything is sent, and one that is larger
than the ring holds streams through it and counts for nobody until its last byte is out.

The writer has no thread. Readers are let in, and deaths noticed, in its calls: ``wait_until_ready``, ``send``, and ``attend`` for
an owner that is idle (its epoll: ``fileno``).

Invariant: nothing waits for a reader beyond its deadline, and nothing at all for one that died on this node or was dismissed.
"""

from __future__ import annotations

import secrets
import select
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final

from enginehouse_engine.message_queue.address import QueueAddress
from enginehouse_engine.message_queue.errors import QueueCancelled, QueueError, ReadersBehind, ReadersMissing
from enginehouse_engine.message_queue.handshake import Attach, Welcome, reason_to_refuse
from enginehouse_engine.message_queue.local_connections import LocalConnections
from enginehouse_engine.message_queue.payload import Buffer, OutgoingPayload
from enginehouse_engine.message_queue.remote_connections import RemoteConnections
from enginehouse_engine.message_queue.ring_layout import MessageHeader, record_bytes
from enginehouse_engine.message_queue.ring_writer import ImpossibleAcknowledgement, RingWriter
from enginehouse_engine.message_queue.waiting import Signal, SpinBudget, seconds_left
from enginehouse_engine.shared_memory_size import REQUEST_RING_BYTES

KEY_BYTES: Final = 16


class Writer:
    """Bound when constructed; ``address`` is what readers need. One thread's, but for :meth:`cancel` and :meth:`dismiss`.

    ``readers``: the names that may attach. ``remote_host``: an IP address of this node for readers of other nodes; empty = none.
    ``ring_bytes``: also how much a remote reader may be behind. Raises SharedMemoryTooSmall.
    """

    def __init__(
        self,
        *,
        queue: str,
        writer: str,
        generation: int,
        readers: Collection[str],
        ring_bytes: int = REQUEST_RING_BYTES,
        remote_host: str = "",
    ) -> None:
        self._expected = tuple(sorted(set(readers)))
        self._ring = RingWriter(ring_bytes=ring_bytes, purpose=f"queue {queue!r} of {writer}")
        self._epoll = select.epoll()
        self._signal = Signal()
        self._epoll.register(self._signal.descriptor, select.EPOLLIN)
        self._local = LocalConnections(self._epoll)
        self._remote = RemoteConnections(host=remote_host, window_bytes=self._ring.ring_bytes) if remote_host else None
        if self._remote:
            self._epoll.register(self._remote.fileno(), select.EPOLLIN)
        self.address = QueueAddress(
            queue=queue,
            writer=writer,
            generation=generation,
            key=secrets.token_hex(KEY_BYTES),
            local=self._local.name,
            remote=self._remote.endpoint if self._remote else "",
        )
        self.lost: dict[str, str] = {}
        """Readers that attached and are no longer there, with the reason; a successor takes its name out."""
        self._generations: dict[str, int] = {}
        self._next_sequence = 1
        self._spin = SpinBudget()
        self._joining: list[tuple[int | bytes, Attach]] = []
        self._sending = False
        self._dismissals: deque[tuple[str, str]] = deque()
        self._cancelled = False
        self._closed = False

    def fileno(self) -> int:
        """Readable when :meth:`attend` has something to do."""
        return self._epoll.fileno()

    def attached(self) -> list[str]:
        """The readers that are there."""
        return sorted([*self._ring.readers, *(self._remote.names() if self._remote else ())])

    def missing(self) -> list[str]:
        """The readers that are not."""
        attached = self.attached()
        return [name for name in self._expected if name not in attached]

    def wait_until_ready(self, *, deadline_seconds: float) -> None:
        """Return when every reader is attached. Raises ReadersMissing, which names those that are not, and QueueCancelled."""
        if not self._wait(lambda: not self.missing(), time.monotonic() + deadline_seconds):
            missing = self.missing()
            said = "; ".join(f"{name} was lost: {self.lost[name]}" for name in missing if name in self.lost)
            raise ReadersMissing(
                f"{self.address} waited {deadline_seconds:g} s for {', '.join(missing)}" + (f" ({said})" if said else ""),
                names=tuple(missing),
            )

    def send(self, frames: Sequence[Buffer], *, correlation: int = 0, deadline_seconds: float) -> int:
        """Send one message to all attached readers; its sequence number. The frames are copied before this returns.

        Raises ReadersBehind, which names those that made no room in time (the message then reached nobody: dismiss them or send
        it again), MessageTooLarge, and QueueCancelled.
        """
        self._check_usable()
        deadline = time.monotonic() + deadline_seconds
        payload = OutgoingPayload(frames)
        self._sending = True
        try:
            sequence = self._send(payload, frames, correlation, deadline, deadline_seconds)
        finally:
            self._sending = False
        self.attend()
        return sequence

    def attend(self) -> None:
        """Let readers in and notice those that are gone; never blocks. A reader that attaches waits for this or another call."""
        for descriptor, _ in self._epoll.poll(0):
            if descriptor == self._signal.descriptor:
                self._signal.take()
                continue
            attaching, gone = self._local.handle(descriptor)
            self._joining += attaching
            for name in gone:
                self._let_go(name, "its process ended or closed its end")
        while self._dismissals:
            self._let_go(*self._dismissals.popleft())
        self._hear_remote()
        while self._joining and not self._sending:
            self._answer(*self._joining.pop(0))
            self._hear_remote()

    def _hear_remote(self) -> None:
        """Until nothing is there any more, and after whatever is sent over TCP: sending may take the news of a message out of ZMQ's
        descriptor, and no sleep would end for it.
        """
        while self._remote:
            knocking, broken = self._remote.receive()
            self._joining += knocking
            for name, reason in broken:
                self._let_go(name, reason)
            if not broken:
                return

    def dismiss(self, reader: str, reason: str) -> None:
        """Declare a reader dead: nothing waits for it any more. From any thread; also ends a wait for it that is under way."""
        self._dismissals.append((reader, reason))
        self._signal.set()

    def cancel(self) -> None:
        """Have the present and every later wait raise QueueCancelled. From any thread, also from a signal handler."""
        self._cancelled = True
        self._signal.set()

    def close(self) -> None:
        """Tell the readers that this was all, and give everything back. They still receive what was sent. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._ring.finish()
        self._ring.close()
        if self._remote:
            self._remote.finish()
            self._remote.close()
        self._local.close()
        self._epoll.close()
        self._signal.close()

    def _send(
        self, payload: OutgoingPayload, frames: Sequence[Buffer], correlation: int, deadline: float, deadline_seconds: float
    ) -> int:
        sequence = self._next_sequence
        tag, total_bytes, count = self.address.tag, payload.total_bytes, payload.frame_count
        remote = self._remote
        if remote and not self._wait(lambda: not remote.behind(total_bytes), deadline):
            raise self._behind(remote.behind(total_bytes), deadline_seconds)
        offset = 0
        while True:
            fragment_bytes = min(total_bytes - offset, self._ring.largest_fragment_bytes)
            room_bytes = record_bytes(fragment_bytes)
            if not self._ring_has_room(room_bytes) and not self._wait_for_room(room_bytes, deadline):
                raise self._behind(self._ring.behind(room_bytes), deadline_seconds)
            header = MessageHeader(tag, sequence, correlation, total_bytes, offset, fragment_bytes, count)
            self._ring.write(header, payload)
            offset += fragment_bytes
            if offset == total_bytes:
                break
        if remote:
            whole = MessageHeader(tag, sequence, correlation, total_bytes, 0, total_bytes, count)
            for name in remote.send(sequence, whole.pack(), frames):
                self._let_go(name, "its connection is gone")
        self._next_sequence += 1
        return sequence

    def _behind(self, names: list[str], deadline_seconds: float) -> ReadersBehind:
        return ReadersBehind(
            f"{self.address} waited {deadline_seconds:g} s for {', '.join(names)} to read; "
            f"message {self._next_sequence} was not sent",
            names=tuple(names),
        )

    def _ring_has_room(self, room_bytes: int) -> bool:
        while True:
            try:
                return self._ring.has_room(room_bytes)
            except ImpossibleAcknowledgement as error:
                self._let_go(error.reader, str(error))

    def _wait_for_room(self, room_bytes: int, deadline: float) -> bool:
        spin_seconds = self._spin.seconds()
        if spin_seconds:
            spin_until = time.monotonic() + spin_seconds
            while time.monotonic() < spin_until:
                if self._ring_has_room(room_bytes):
                    self._spin.found()
                    return True
            self._spin.missed()
        self._ring.announce_sleep(room_bytes)
        try:
            return self._wait(lambda: self._ring_has_room(room_bytes), deadline)
        finally:
            self._ring.end_sleep()

    def _wait(self, done: Callable[[], bool], deadline: float) -> bool:
        """Sleep until ``done``; False at the deadline. Attends meanwhile. Raises QueueCancelled."""
        while True:
            self._check_usable()
            self.attend()
            if done():
                return True
            remaining = seconds_left(deadline)
            if remaining == 0:
                return False
            if not self._cancelled:
                self._epoll.poll(remaining)

    def _check_usable(self) -> None:
        if self._closed or self._cancelled:
            raise QueueCancelled(f"{self.address} was {'closed' if self._closed else 'cancelled'}")

    def _answer(self, stranger: int | bytes, attach: Attach) -> None:
        reason = reason_to_refuse(attach, address=self.address, expected=self._expected, attached_generations=self._generations)
        if not reason:
            self._let_go(attach.reader, f"generation {attach.generation} of it attached")
            reason = self._welcome(stranger, attach)
        if reason and isinstance(stranger, int):
            self._local.refuse(stranger, reason)
        elif reason and isinstance(stranger, bytes) and self._remote:
            self._remote.refuse(stranger, reason)

    def _welcome(self, stranger: int | bytes, attach: Attach) -> str:
        """Admit a reader; why it cannot be, or nothing."""
        if isinstance(stranger, int):
            try:
                page = self._ring.attach(attach.reader)
            except QueueError as error:
                return str(error)
            welcome = Welcome(first_sequence=self._next_sequence, ring_bytes=self._ring.ring_bytes, position=self._ring.position)
            descriptors = [
                self._ring.read_only_descriptor,
                page.descriptor,
                page.signal.descriptor,
                self._signal.descriptor,
            ]
            self._local.welcome(stranger, attach, welcome, descriptors)
        elif self._remote:
            self._remote.welcome(stranger, attach, Welcome(first_sequence=self._next_sequence))
        self._generations[attach.reader] = attach.generation
        self.lost.pop(attach.reader, None)
        return ""

    def _let_go(self, name: str, reason: str) -> None:
        """Stop counting on a reader; one that is not there is no error."""
        if name in self._ring.readers:
            self._local.say_dismissed(name, reason)
            self._ring.detach(name)
            self._local.drop(name)
        elif self._remote and name in self._remote.names():
            self._remote.dismiss(name, reason)
        else:
            return
        self.lost[name] = reason
