"""The real launcher with stand-in children: ranks and API servers die, alone and together, while the others serve."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from launched_engine import Launched
from logged_process import watched

# Each rank has two workers; the model is a file that nobody reads.
SHAPE = ("--executor", "Multiprocess", "--tensor-parallel", "2", "--data-parallel", "2", "--api-servers", "2")
RANK = {"engine-core {0}": "publish,peers,addresses,hello", "worker {0}.0": "publish,peers", "worker {0}.1": "publish,peers"}
SERVER = "cores,bound"
BEHAVIOURS = {
    **{key.format(rank): behaviour for rank in (0, 1) for key, behaviour in RANK.items()},
    "api-server 0": SERVER,
    "api-server 1": SERVER,
}
NAMES = ["engine core of rank {0}", "worker 0 of rank {0}", "worker 1 of rank {0}"]


@pytest.fixture
def engine(launched: Any, tmp_path: Path) -> Any:
    """Two ranks and two API servers that serve; every process knows all it has to know."""
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b"GGUF1234")

    def start(**behaviours: str) -> Launched:
        given = BEHAVIOURS | {key.replace("_", " "): value for key, value in behaviours.items()}
        one: Launched = launched(given, "--model", str(model), *SHAPE)
        one.output()
        for rank in (0, 1):
            one.until(f'pid {one.pid(f"engine core of rank {rank}")} was given .*"addresses"')
            for index in (0, 1):
                one.until(f'pid {one.pid(f"worker {index} of rank {rank}")} was given .*"peers"')
        return one

    return start


def words(one: Launched, server: str, *, incarnation: int = 1) -> list[str]:
    """What an API server was told of ``rank 0, rank 1``, without what it was told twice."""
    heard = re.findall(rf"pid {one.pid(server, incarnation=incarnation)} hears (.*)", one.text())
    ranks = [json.loads(text)["ranks"] for text in heard]
    return [", ".join(f"{rank['state']} {rank['incarnation']}" for rank in ranks) for ranks in ranks]


def ended_by(one: Launched, number: int = signal.SIGTERM) -> int:
    one.process.send_signal(number)
    return one.wait()


@pytest.mark.parametrize("victim", NAMES)
def test_a_rank_that_is_killed_goes_as_a_whole_and_comes_back_while_the_other_serves(engine: Any, victim: str) -> None:
    one = engine()
    untouched = [os.pidfd_open(one.pid(name.format(1))) for name in NAMES]
    with watched(one.pid(NAMES[0].format(0))) as core_gone, watched(one.pid(NAMES[2].format(0))) as worker_gone:
        os.kill(one.pid(victim.format(0)), signal.SIGKILL)
        assert core_gone()
        assert worker_gone()
    for name in NAMES:
        one.until(f'pid {one.pid(name.format(0), incarnation=2)} was given .*"peers"')
    assert '"incarnation": 2' in one.until(f"pid {one.pid(NAMES[1].format(0), incarnation=2)} was given (.*)")[1]
    one.until(f"pid {one.pid('API server 1')} hears .*" + re.escape('{"rank": 0, "incarnation": 2, "state": "Serving"}'))
    assert words(one, "API server 1")[-4:] == [
        "Serving 1, Serving 1",
        "Restarting 1, Serving 1",
        "Restarting 2, Serving 1",
        "Serving 2, Serving 1",
    ]
    for pidfd in untouched:
        signal.pidfd_send_signal(pidfd, 0)
        os.close(pidfd)
    assert ended_by(one) == 0, "it was made good"


def test_an_api_server_that_is_killed_comes_back_with_another_endpoint_and_is_told_how_things_are(engine: Any) -> None:
    one = engine()
    os.kill(one.pid("API server 0"), signal.SIGKILL)
    again = one.pid("API server 0", incarnation=2)
    one.until(rf'pid {again} hears .*"ranks"')
    core = one.pid("engine core of rank 1")
    one.until(rf"pid {core} hears .*front-0-2")
    lists = [json.loads(text)["frontEnds"] for text in re.findall(rf"pid {core} hears (.*)", one.text())]
    assert [[front_end["endpoint"] for front_end in front_ends] for front_ends in lists] == [
        ["ipc://front-1-1"],
        ["ipc://front-0-2", "ipc://front-1-1"],
    ]
    assert words(one, "API server 0", incarnation=2)[0] == "Serving 1, Serving 1"
    assert ended_by(one) == 0


def test_rank_and_api_server_killed_at_once_both_come_back(engine: Any) -> None:
    one = engine()
    victims = [one.pid("API server 1"), one.pid("worker 1 of rank 1")]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    server, core = one.pid("API server 1", incarnation=2), one.pid("engine core of rank 1", incarnation=2)
    one.until(f'pid {core} was given .*"addresses"')
    one.until(rf'pid {server} hears .*"incarnation": 2, "state": "Serving"')
    assert ended_by(one) == 0


def test_a_death_during_a_restart_leaves_the_rank_dead_and_the_other_serving_and_a_planned_end_is_none(
    engine: Any,
) -> None:
    one = engine(**{"worker 0.1 again": "exit=3"})
    os.kill(one.pid("worker 0 of rank 0"), signal.SIGSEGV)
    one.until(f'pid {one.pid("API server 0")} hears .*"incarnation": 2, "state": "Dead"')
    assert words(one, "API server 0")[-1] == "Dead 2, Serving 1"
    assert one.process.poll() is None
    assert ended_by(one) == 0, "the death was told when it happened, and the end was asked for"


def test_a_stop_during_a_restart_does_not_wait_for_it(engine: Any) -> None:
    one = engine(**{"worker 0.0 again": "deaf"})  # it never says where it is, so the rank cannot come back
    os.kill(one.pid("engine core of rank 0"), signal.SIGKILL)
    worker = one.pid("worker 0 of rank 0", incarnation=2)
    one.until(f"pid {worker} does deaf")
    with watched(worker) as gone:
        assert ended_by(one) == 0
        assert gone()


def test_workers_stop_when_their_core_has_exited(engine: Any) -> None:
    one = engine()
    assert ended_by(one) == 0
    text = one.text()
    for rank in (0, 1):
        reaped = text.index(f"engine core of rank {rank} exited with code 0")
        for index in (0, 1):
            assert text.index(f"pid {one.pid(f'worker {index} of rank {rank}')} got stop") > reaped


def test_the_monitor_ends_one_rank_for_good(launched: Any, tmp_path: Path) -> None:
    path = tmp_path / "monitor"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(path))
        server.listen()
        behaviours = {"api-server 0": SERVER, "engine-core 0": "addresses,hello", "engine-core 1": "addresses,hello"}
        one = launched(behaviours, "--data-parallel", "2", "--monitor-socket", str(path))
        connection, _ = server.accept()
        connection.send(b'{"type": "stored"}')
        one.output()
        connection.send(b'{"type": "abort", "ranks": [1]}')
        one.until(r'hears .*"rank": 1, "incarnation": 1, "state": "Dead"')
        one.until("engine core of rank 1 was killed by SIGKILL")
        assert one.process.poll() is None
        assert "incarnation 2" not in one.text()
        connection.send(b'{"type": "abort", "ranks": [0]}')
        assert one.wait() == 0
        connection.close()
