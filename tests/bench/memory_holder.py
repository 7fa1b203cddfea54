"""A registered process that does nothing but hold so much private memory: what a kill of an engine core costs the kernel.

    python memory_holder.py SOCKET BYTES huge|small

Started by ``memory_curve.py``, which plays the launcher.
"""

from __future__ import annotations

import mmap
import os
import sys

from enginehouse_engine.registration import register

PAGE_BYTES = 4096


def main() -> None:
    socket_path, size, pages = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    registration = register(socket_path, role="engine-core", rank=0, index=0, incarnation=1, deadline_seconds=30)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if pages == "huge" else mmap.MADV_NOHUGEPAGE)
    memory[0:size:PAGE_BYTES] = os.urandom(1) * len(range(0, size, PAGE_BYTES))
    registration.stage("serve")
    registration.receive(None)  # raises when the launcher is gone


main()
