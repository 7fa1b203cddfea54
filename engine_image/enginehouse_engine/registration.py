"""How a process tells the launcher that it lives, and lets the kernel tell that it died.

The process makes a pipe and hands its read end and its own pidfd over to the launcher. It keeps the only write end, so the
read end reaches end of file when, and only when, the process is gone: no timer, no probe, no poll. ``bye`` written first
marks a planned exit. Since the kernel releases memory before it closes pipes, the process also holds a lock that the kernel gives
back first. The same socket then carries the control messages of ``docs/wire-protocol.md`` section 2.

Invariant: standard library only and nothing else of the engine, because a process calls :func:`register` before its heavy
imports and any engine may use this file. Does not reap, restart or judge: the launcher does.
"""

from __future__ import annotations

import array
import ctypes
import errno
import faulthandler
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import socket
import threading
import time
from typing import Any, Final

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 64 * 1024

_SEND_TIMEOUT_SECONDS: Final = 10.0
_LONGEST_TEXT: Final = 8 * 1024
_PR_SET_PDEATHSIG: Final = 1

# The kernel releases the highest descriptor first when a process dies, so the pipe must sit above descriptors that are slow to
# release (memory files, accelerator drivers). The kernel's table grows with the highest number: this one costs 128 KiB.
_HIGH_DESCRIPTOR: Final = 16 * 1024
_ROOM_ABOVE: Final = 16

LOCK_BYTES: Final = 4096
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
SOMEBODY_WAITS: Final = 0x8000_0000
"""FUTEX_WAITERS in the word of a lock: the kernel wakes nobody without it."""

# What a Java or a Go program answers with its stacks, too. Applications use SIGUSR1 and SIGUSR2, libraries the real-time signals;
# and the key that sends this one in a terminal reaches the launcher alone, since every other process has a session of its own.
_STACKS_SIGNAL: Final = signal.SIGQUIT
_STANDARD_OUTPUT: Final = 1
_STANDARD_ERROR: Final = 2


class RegistrationError(Exception):
    """The launcher cannot be reached, refused this process, or said something that is not in the protocol."""


class LauncherGone(RegistrationError):
    """The launcher closed its side: it died. Nobody owns this process any more, so it must exit at once."""


class Registration:
    """The live link to the launcher. Messages are whole: sending from several threads needs no lock."""

    def __init__(self, control: socket.socket, write_end: int) -> None:
        self._control = control
        self._write_end = write_end

    def fileno(self) -> int:
        """For a poller or an event loop: readable when :meth:`receive` has something to return or to raise."""
        return self._control.fileno()

    def stage(self, name: str) -> None:
        """Say what the process does now: ``import``, ``load``, ``profile``, ``handshake``, ``serve``; a timeout names it."""
        self.send("stage", stage=name)

    def failed(self, cause: str, message: str) -> None:
        """Say why the process is about to exit non-zero. ``cause`` is a class of the launcher's termination message."""
        self.send("failed", **{"class": cause, "message": message[-_LONGEST_TEXT:]})

    def send(self, type: str, **fields: Any) -> None:
        """Send one message. Raises LauncherGone, or RegistrationError when it is too long or not accepted in 10 seconds."""
        data = json.dumps({"type": type, **fields}).encode()
        if len(data) > MAX_MESSAGE_BYTES:
            raise RegistrationError(f"message {type!r} has {len(data)} bytes, at most {MAX_MESSAGE_BYTES} fit")
        try:
            self._control.send(data)
        except TimeoutError as error:
            raise RegistrationError(f"the launcher did not take message {type!r} in {_SEND_TIMEOUT_SECONDS:.0f} s") from error
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                raise LauncherGone(f"the launcher is gone, message {type!r} was not sent") from error
            raise

    def receive(self, timeout_seconds: float | None = 0.0) -> dict[str, Any] | None:
        """The next message, or None when none arrived in time (0 = look once, None = wait for ever).

        Raises LauncherGone at end of file and RegistrationError for a message that is not a JSON object with a ``type``.
        """
        return self._receive(timeout_seconds, outputs=0)

    def _receive(self, timeout_seconds: float | None, *, outputs: int) -> dict[str, Any] | None:
        """A descriptor that comes with it becomes this process's standard output and error: so the launcher reads what a process
        writes that somebody else has started."""
        if not _readable(self._control, timeout_seconds):
            return None
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, outputs, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data, descriptors = b"", []
        for descriptor in descriptors:
            os.dup2(descriptor, _STANDARD_OUTPUT)
            os.dup2(descriptor, _STANDARD_ERROR)
            os.close(descriptor)
        if not data:
            raise LauncherGone("the launcher closed the control socket")
        try:
            message = json.loads(data)
        except ValueError as error:
            raise RegistrationError(f"undecodable message of {len(data)} bytes from the launcher: {error}") from error
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise RegistrationError(f"a message is a JSON object with a type, found {data[:200]!r}")
        return message

    def bye(self) -> None:
        """Announce a planned exit. The pipe stays open: its end of file still tells the moment of the exit."""
        try:
            os.write(self._write_end, b"bye\n")
        except BrokenPipeError:
            return  # Launcher and monitor are both gone: nobody is left to tell.

    def _forget_in_forked_child(self) -> None:
        # A child that kept the write end would hide this process's death for as long as it lives.
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1
        self._control.close()


def register(
    socket_path: str,
    *,
    role: str,
    rank: int | None,
    index: int,
    incarnation: int,
    deadline_seconds: float,
) -> Registration:
    """Register this process with the launcher that listens on ``socket_path``.

    ``role`` is ``api-server``, ``engine-core`` or ``worker``; ``rank`` is None for API servers; ``index`` tells processes of one
    role (and rank) apart. From then on this process also dies with its parent, and of a fatal signal only after it has shown its
    stacks. The thread that calls this has to live as long as the process, as the main thread does. Raises RegistrationError when
    the launcher cannot be reached, refuses, or does not answer within ``deadline_seconds``.
    """
    deadline = time.monotonic() + deadline_seconds
    show_stacks_at_the_end()
    # Before connecting: an answer then proves that the launcher was alive after this took effect.
    die_with_parent()
    read_end, write_end = open_death_pipe()
    pidfd = os.pidfd_open(os.getpid())
    lock = hold_lock()
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    registration = Registration(control, write_end)
    try:
        control.settimeout(deadline_seconds)
        identity = {"role": role, "rank": rank, "index": index, "incarnation": incarnation, "pid": os.getpid()}
        hello = json.dumps({"type": "register", "version": VERSION, **identity}).encode()
        descriptors = array.array("i", [read_end, pidfd, lock])
        try:
            control.connect(socket_path)
            control.sendmsg([hello], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        except OSError as error:
            raise RegistrationError(f"cannot register {role} with the launcher at {socket_path}: {error}") from error
        control.settimeout(_SEND_TIMEOUT_SECONDS)
        answer = registration._receive(max(0.0, deadline - time.monotonic()), outputs=1)
        if answer is None:
            raise RegistrationError(f"the launcher at {socket_path} did not answer {role} in {deadline_seconds:.0f} s")
        if answer["type"] != "registered":
            raise RegistrationError(f"the launcher refused {role}: {answer.get('message', answer)}")
    except BaseException:
        control.close()
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
        os.close(pidfd)
        os.close(lock)
    os.register_at_fork(after_in_child=registration._forget_in_forked_child)
    return registration


def open_death_pipe() -> tuple[int, int]:
    """Read end and write end, both close-on-exec, the write end on a high descriptor. The launcher makes its own with it, too."""
    read_end, low = os.pipe2(os.O_CLOEXEC)
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        ceiling = _HIGH_DESCRIPTOR if limit == resource.RLIM_INFINITY else min(limit, _HIGH_DESCRIPTOR)
        write_end = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, max(3, ceiling - _ROOM_ABOVE))
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(low)
    return read_end, write_end


def hold_lock() -> int:
    """A memory file whose first word is a robust lock (pthread_mutexattr_setrobust) that this thread holds until it dies.

    The kernel marks the word and wakes whoever waits for it before anything of the process is released: 0.5 ms after a kill that
    closes the pipe after 50. The word stays zero where the C library keeps its locks in another way: then the pipe alone tells.
    """
    libc = ctypes.CDLL(None)
    descriptor = os.memfd_create("enginehouse-lock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, LOCK_BYTES)
    # Whoever maps it can rely on its size.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    # Not by the module mmap, which unmaps when the interpreter ends: the kernel finds the lock by its address.
    libc.mmap.restype = ctypes.c_void_p
    size, access, at = ctypes.c_size_t(LOCK_BYTES), mmap.PROT_READ | mmap.PROT_WRITE, ctypes.c_long(0)
    address = libc.mmap(None, size, access, mmap.MAP_SHARED, descriptor, at)
    if address == _MAP_FAILED:
        os.close(descriptor)
        raise RegistrationError(f"a memory file of {LOCK_BYTES} bytes cannot be mapped: the address space is limited")
    word = ctypes.c_uint32.from_address(address)
    attributes = ctypes.create_string_buffer(256)
    shared = robust = 1  # PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST
    libc.pthread_mutexattr_init(attributes)
    libc.pthread_mutexattr_setpshared(attributes, shared)
    libc.pthread_mutexattr_setrobust(attributes, robust)
    libc.pthread_mutex_init(ctypes.byref(word), attributes)
    libc.pthread_mutex_lock(ctypes.byref(word))
    if word.value == threading.get_native_id():
        word.value |= SOMEBODY_WAITS
    return descriptor


def show_stacks_at_the_end() -> None:
    """A fatal signal, SIGABRT included, and SIGQUIT write the stacks of all threads to standard error; then the process dies of it.

    No interpreter lock is needed, so this works inside a library that never returns. ``chain`` is what ends the process after
    SIGQUIT, so that whoever asked knows that the answer is complete.
    """
    faulthandler.enable(file=_STANDARD_ERROR, all_threads=True)
    # A shell that starts somebody in the background has it ignore SIGQUIT: then nothing would end the process.
    signal.signal(_STACKS_SIGNAL, signal.SIG_DFL)
    faulthandler.register(_STACKS_SIGNAL, file=_STANDARD_ERROR, all_threads=True, chain=True)


def die_with_parent() -> None:
    """The kernel kills this process when its parent dies: second line beside end of file on the control socket.

    Raises RegistrationError when it will not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise RegistrationError(f"cannot tie this process to its parent: {os.strerror(number)}")


def _readable(control: socket.socket, timeout_seconds: float | None) -> bool:
    poller = select.poll()
    poller.register(control, select.POLLIN)
    return bool(poller.poll(None if timeout_seconds is None else timeout_seconds * 1000))
