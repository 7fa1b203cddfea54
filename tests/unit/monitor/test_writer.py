"""The thread that writes the row, beside an API of the test's."""

from __future__ import annotations

import threading
from typing import Any

from enginehouse_operator.monitor.connection import Unavailable
from enginehouse_operator.monitor.row import Row
from enginehouse_operator.monitor.writer import RowWriter

DEADLINE_SECONDS = 20.0


class FakeApi:
    """Does not answer the first time."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.written: list[Row] = []

    def apply(self, row: Row, *, resource_version: str | None) -> None:
        if not self.asked.is_set():
            self.asked.set()
            raise Unavailable("on purpose")
        self.written.append(row)

    def close(self) -> None:
        pass


def test_who_waits_after_an_outage_tries_at_once_when_the_monitor_is_asked_to_end() -> None:
    api: Any = FakeApi()
    writer = RowWriter(api, now=lambda: "2026-01-01T00:00:00Z")
    writer._retry_seconds = 10 * DEADLINE_SECONDS
    writer.start()
    row = Row(name="pod-0", uid="pod-uid", address="10.0.0.7", state="Failed")
    writer.want(row)
    assert api.asked.wait(DEADLINE_SECONDS)
    assert writer.finish(deadline_seconds=DEADLINE_SECONDS)
    assert api.written == [row]
