"""The launcher's side of the monitor's socket, with the clock in the test's hand."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from enginehouse_engine.launcher import datagrams, messages
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.evidence import MOST_CHARACTERS
from enginehouse_engine.launcher.monitor_link import LONGEST_RETRY_SECONDS, MonitorLink
from enginehouse_engine.launcher.process import ENGINE_CORE, Process


def test_a_monitor_that_hangs_up_at_once_is_asked_less_and_less_often(tmp_path: Path) -> None:
    """One of another version does: connecting succeeds, so that without a pause the launcher would take a whole core."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(tmp_path / "monitor"))
        server.listen()
        loop, heard = EventLoop(), list[messages.FromMonitor]()
        link = MonitorLink(path=str(tmp_path / "monitor"), own_pipe=server.fileno(), loop=loop, heard=heard.append)

        def hung_up_on(now: float) -> float:
            """The pause after a connection that was made at ``now`` and closed."""
            link.connect(now)
            server.accept()[0].close()
            for callback in loop.wait(10):
                callback()
            return link.retry_at - now

        pauses, now = [], 0.0
        for _ in range(8):
            pauses.append(hung_up_on(now))
            now = link.retry_at
        assert pauses == pytest.approx(sorted(pauses))
        assert pauses[0] > 0
        assert pauses[-1] == pytest.approx(LONGEST_RETRY_SECONDS)
        # One that was of use and restarts is found again soon.
        link.connect(now)
        connection, _ = server.accept()
        connection.send(b'{"type": "stored"}')
        connection.close()
        for callback in loop.wait(10):
            callback()
        assert heard == [messages.Stored()]
        assert link.retry_at - now == pytest.approx(pauses[0])


def test_a_monitor_that_does_not_read_yet_is_handed_everything_whatever_language_the_evidence_is_in(tmp_path: Path) -> None:
    """What it has not read has to fit into the socket: else it would never get to hear the state, at no attempt."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(tmp_path / "monitor"))
        server.listen()
        link = MonitorLink(path=str(tmp_path / "monitor"), own_pipe=server.fileno(), loop=EventLoop(), heard=lambda message: None)
        for incarnation in range(8):
            core = Process(role=ENGINE_CORE, rank=0, index=0, incarnation=incarnation)
            link.exited(core, {"type": "exited", "planned": False, "incarnation": incarnation, "evidence": "é" * MOST_CHARACTERS})
        link.state({"type": "state"})
        link.connect(0.0)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            heard = [json.loads(connection.recv(datagrams.MAX_MESSAGE_BYTES)) for _ in range(10)]
    assert [message["type"] for message in heard] == ["hello", *["exited"] * 8, "state"]
    assert [message["incarnation"] for message in heard if "evidence" in message] == [7], "the row keeps no other"


def test_descriptors_of_an_empty_message_are_given_back() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        socket.send_fds(theirs, [b""], [0])
        with pytest.raises(datagrams.Closed):
            datagrams.receive(ours)
        assert len(os.listdir("/proc/self/fd")) == before
