"""However the launcher ends, in whatever phase, and however often it is asked to: no process stays, and no shared memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from members import Members, left

PHASES = {
    "spawned": "started engine core of rank 0",
    "loading": "has joined",
    "handshake": "up after",
    "serving": "ready after",
    "draining": "launcher: draining",
}
"""What the leader's log says when the phase has begun."""


@pytest.mark.parametrize("phase", PHASES)
def test_a_launcher_that_is_killed_in_any_phase_leaves_no_process_and_no_shared_memory(tmp_path: Path, phase: str) -> None:
    """Its rank has workers in both members, a queue in shared memory, and a client's request if it drains."""
    memory_before = set(os.listdir("/dev/shm"))
    replica = Members(tmp_path, members=2, workers_each=2, data=2, tensor=2)
    try:
        # A member whose leader is gone before they met waits for another one, until its start-up timeout.
        leader, other = replica.start(0), replica.start(1, "--startup-timeout-seconds=20")
        if phase == "draining":
            leader.until(PHASES["serving"])
            os.kill(int(leader.until(r"started API server 0, pid (\d+)")[1]), signal.SIGSTOP)  # it does not say that it has drained
            leader.process.send_signal(signal.SIGTERM)
        leader.until(PHASES[phase])
        leader.process.kill()
        leader.exit_code()
        assert other.exit_code() != 0 or phase == "draining"
        assert left(leader.pids() + other.pids()) == []
        assert set(os.listdir("/dev/shm")) <= memory_before
    finally:
        replica.close()


def test_a_launcher_that_is_asked_to_end_many_times_still_ends_all_that_it_started(tmp_path: Path) -> None:
    replica = Members(tmp_path, members=2, workers_each=1, tensor=2)
    try:
        leader, other = replica.start_all()
        while leader.process.poll() is None:
            leader.process.send_signal(signal.SIGTERM)
        assert (leader.exit_code(), left(leader.pids() + other.pids())) == (0, [])
        assert other.exit_code() == 0
    finally:
        replica.close()
