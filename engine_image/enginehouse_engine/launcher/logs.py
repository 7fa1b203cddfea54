"""What the engine's processes and the launcher itself write to standard error: passed on in whole lines, and the end of it kept.

Every process writes into a pipe of its own. One thread reads them all and writes to the launcher's standard error, which may block
for as long as nobody reads there; a process that writes more than is read then waits, as it would without the pipe.

Invariants: the launcher's loop never waits for a reader of the log; each process's bytes stay whole, unchanged and in order, and
nobody else's come into a line of at most 4 KiB (stacks are written piece by piece, all survivors of a death write at once); what
a process wrote before it died is kept once it is reaped, since all of it lies in the pipe by then; descendants that hold the pipe
open hold up nothing. Of a terminal nothing is kept: processes get it as it is, so that none of them behaves differently there.
Where JSON is asked for, lines are passed on as objects instead (``log_format.py``), also to a terminal; what is kept is as it was.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from enginehouse_engine import log_format
from enginehouse_engine.launcher.process import Process

STANDARD_ERROR: Final = 2
KEPT_BYTES: Final = 16 * 1024
"""Of each process: room for its last lines and the stacks of all its threads."""

_PIPE_BYTES: Final = 64 * 1024
_MOST_BEGUN_BYTES: Final = 4096
"""Of a line that does not end; what is longer is passed on in pieces."""
_MOST_READS: Final = 16
"""When somebody catches up: more than a pipe holds, and an end with a descendant that never stops writing."""
_MOST_PENDING: Final = 256
"""Pieces that wait for a reader of the log. Beyond that they are dropped: nobody has read for long."""
_LAST_WRITE_SECONDS: Final = 1.0
"""How long the end waits for a reader of the log."""


@dataclass
class _Pipe:
    read_end: int
    writer: str
    begun: bytes = b""
    """The line that has not ended yet, which is passed on when it has."""
    kept: bytearray = field(default_factory=bytearray)
    total_bytes: int = 0
    """That ever came."""
    is_open: bool = True


class Logs:
    """``output`` is where everything goes, with ``json`` as objects, also to a terminal."""

    def __init__(self, output: int = STANDARD_ERROR, *, json: bool = False) -> None:
        self._output = output
        self._json = json
        self._is_terminal = os.isatty(output) and not json
        self._lock = threading.Lock()
        self._pipes: dict[int, _Pipe] = {}
        """By read end; those that are open."""
        self._of: dict[Process, _Pipe] = {}
        self._pending: deque[bytes] = deque()
        self._is_over = False
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._thread = threading.Thread(target=self._forward, name="log", daemon=True)
        self._own: list[logging.StreamHandler[Logs]] = []

    def start(self) -> None:
        """From here on also what the launcher itself logs goes through the thread."""
        if self._is_terminal:
            return
        self._thread.start()
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setStream(self)
                self._own.append(handler)

    def open(self, process: Process) -> int:
        """Where ``process`` is to write; the caller closes it once the process has it."""
        if self._is_terminal:
            return os.dup(self._output)
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_end, False)
        pipe = _Pipe(read_end, writer=str(process))
        with self._lock:
            self._of[process] = self._pipes[read_end] = pipe
        self._epoll.register(read_end, select.EPOLLIN)
        return write_end

    def catch_up(self, process: Process) -> None:
        """Take what lies in the pipe now. Never waits."""
        with self._lock:
            pipe = self._of.get(process)
            for _ in range(_MOST_READS):
                if pipe is None or not self._take(pipe):
                    break
        self._wake()

    def position(self, process: Process) -> int:
        """How many bytes it has written, for :meth:`kept`."""
        with self._lock:
            pipe = self._of.get(process)
            return pipe.total_bytes if pipe else 0

    def kept(self, process: Process, *, start: int = 0, end: int | None = None) -> bytes:
        """What was kept of it between two positions."""
        with self._lock:
            pipe = self._of.get(process)
            if pipe is None:
                return b""
            first = pipe.total_bytes - len(pipe.kept)
            stop = pipe.total_bytes if end is None else end
            return bytes(pipe.kept[max(0, start - first) : max(0, stop - first)])

    def forget(self, process: Process) -> None:
        """Keep nothing of it any more. What its descendants write is still passed on."""
        with self._lock:
            self._of.pop(process, None)

    def close(self) -> None:
        """Pass on what there is, if somebody reads it soon. Every process must be gone."""
        for handler in self._own:
            handler.setStream(sys.stderr)  # type: ignore[arg-type]  # a handler of whatever stream it had before
        if not self._thread.is_alive():
            return
        with self._lock:
            for pipe in list(self._pipes.values()):
                while self._take(pipe):
                    pass
                self._pass_on(pipe, pipe.begun)
            self._is_over = True
        self._wake()
        self._thread.join(_LAST_WRITE_SECONDS)

    # For the handlers of the launcher's own log

    def write(self, text: str) -> None:
        """Never waits."""
        with self._lock:
            self._add(text.encode(errors="backslashreplace"))
        self._wake()

    def flush(self) -> None:
        """There is nothing to wait for."""

    def _wake(self) -> None:
        os.eventfd_write(self._wakeup, 1)

    def _add(self, data: bytes) -> None:
        if data and len(self._pending) < _MOST_PENDING:
            self._pending.append(data)

    def _take(self, pipe: _Pipe) -> bool:
        """One read, with the lock held; whether there may be more."""
        if not pipe.is_open:
            return False
        try:
            data = os.read(pipe.read_end, _PIPE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            pipe.is_open = False
            del self._pipes[pipe.read_end]
            self._epoll.unregister(pipe.read_end)
            os.close(pipe.read_end)
            self._pass_on(pipe, pipe.begun)
            pipe.begun = b""
            return False
        pipe.total_bytes += len(data)
        pipe.kept += data
        del pipe.kept[:-KEPT_BYTES]
        data = pipe.begun + data
        # A progress bar ends what it draws with a carriage return, or begins with one.
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if len(data) - end > _MOST_BEGUN_BYTES:
            end = len(data)
        self._pass_on(pipe, data[:end])
        pipe.begun = data[end:]
        return True

    def _pass_on(self, pipe: _Pipe, data: bytes) -> None:
        self._add(log_format.as_json(data, process=pipe.writer, now=datetime.now(UTC)) if self._json else data)

    # The thread

    def _forward(self) -> None:
        while True:
            ready = self._epoll.poll()
            with self._lock:
                for descriptor, _ in ready:
                    if descriptor == self._wakeup:
                        os.eventfd_read(self._wakeup)
                    elif (pipe := self._pipes.get(descriptor)) is not None:
                        self._take(pipe)
            # Nothing more is read before this is written: that is how a process waits for a slow reader.
            while True:
                with self._lock:
                    if not self._pending:
                        if self._is_over:
                            return
                        break
                    data = self._pending.popleft()
                self._write(data)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._output, left) :]
            except BlockingIOError:
                # Somebody who shares it has made it so.
                select.select([], [self._output], [])
            except OSError:
                return  # Nobody reads any more, and nobody ever will.
