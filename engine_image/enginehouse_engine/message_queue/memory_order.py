"""The one fence of the ring: what a process stored before it is seen by others before what it stores after it.

Python has no fences, so this one is made of a lock that its owner holds for life: release it, take it again. CPython does both
with an atomic read-modify-write each (``sem_post`` and ``sem_trywait``, or its own mutex from 3.13), which POSIX also lists among
the functions that synchronise memory.

x86-64: only a store followed by a load can change places there (TSO), and a locked instruction forbids that as well.
arm64: loads and stores change places freely. ``release`` orders everything before it ahead of its own access, ``acquire``
orders its own access ahead of everything after it, and the architecture orders a release ahead of a later acquire (``[L]; po;
[A]`` in its model, RCsc). Together nothing crosses, a store followed by a load included. The order matters: take-then-release
would let both sides slip in between.

The words behind it are 8 bytes, aligned, and read and written by ``memoryview`` items of format ``Q``: CPython copies them
with a ``memcpy`` of constant size 8, one instruction on both machines, so a word is never seen half written; and each is
stored by one process only (but for ``SLEEPING``, see ``ring_layout.py``).

Invariant: one fence per thread that uses it. Does not wait.
"""

from __future__ import annotations

import threading


class Fence:
    """Call :meth:`full` between what must be seen in order. For one thread at a time."""

    __slots__ = ("_acquire", "_release")

    def __init__(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        self._release = lock.release
        self._acquire = lock.acquire

    def full(self) -> None:
        self._release()
        self._acquire()
