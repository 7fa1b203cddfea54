"""What a settled monitor costs beside an engine that serves, on the real API server: memory, and how often it wakes."""

from __future__ import annotations

import select
import time
from typing import Any

import pytest

from monitored_replica import World, row_of

pytestmark = pytest.mark.api

IDLE_SECONDS = 60
BOOKMARKS = 2
"""The API server sends one a minute, and one minute may hold two."""
OTHER_WAKE_UPS = 8
"""Reading a bookmark may take more than one piece of TLS; the garbage of the start is gone by then."""


def test_in_a_minute_in_which_nothing_happens_a_monitor_hardly_wakes_and_it_is_small(world: World) -> None:
    one = world.monitor()
    launcher = one.launcher()
    assert launcher.hear() == {"type": "stored"}
    held: list[Any] = [launcher.process(rank=rank, pid=100 + rank) for rank in range(4)]
    launcher.state("Serving", maxContextLength=8192, kvBlocks=1024)
    row_of(world, lambda row: row["state"] == "Serving")
    time.sleep(1)  # what the watch says of the last write is still being read
    before = one.switches()
    assert not select.select([launcher.connection], [], [], IDLE_SECONDS)[0], "nothing is said either"
    assert one.switches() - before <= BOOKMARKS + OTHER_WAKE_UPS
    assert one.status("VmRSS") < 30 * 1024
    assert len(held) == 4
    assert one.terminate() == 0
