"""Drills on the real processes of simulated engines: each fault comes where it was asked for, once, and is told as what it is."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from members import Member, Members

ALONE = ("--port=0", "--memory-limit-bytes=1000000000")

MakeMember = Callable[..., Member]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[MakeMember]:
    started: list[Member] = []

    def start(*drills: str) -> Member:
        started.append(Member(tmp_path / "log", *ALONE, *(f"--drill={drill}" for drill in drills)))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def pid(one: Member, name: str) -> int:
    return int(one.until(rf"started {name}, pid (\d+)")[1])


@pytest.mark.parametrize(
    ("drill", "said"),
    [
        ("engine-core:import:exit-1", "engine core of rank 0 exited with code 1$"),
        ("engine-core:load:exit-0", "engine core of rank 0 exited with code 0 although nobody asked it to"),
        ("api-server:load:exit-1", "API server 0 exited with code 1$"),
        ("api-server:handshake:exit-0", "API server 0 exited with code 0 although nobody asked it to"),
    ],
)
def test_a_process_ends_in_the_stage_that_was_asked_for(engine: MakeMember, drill: str, said: str) -> None:
    one = engine(drill)
    phase = drill.split(":")[1]
    one.until(f"drill: exit-. in phase {phase}")
    assert one.exit_code() == 1
    assert re.search(f"the engine ends: ExitCode: {said}", one.text(), re.MULTILINE)


@pytest.mark.parametrize(("role", "name"), [("engine-core", "engine core of rank 0"), ("api-server", "API server 0")])
def test_a_fault_while_serving_waits_for_the_signal_and_is_not_repeated_in_the_next_incarnation(
    engine: MakeMember, role: str, name: str
) -> None:
    one = engine(f"{role}:serving:exit-1")
    one.until("ready after")
    os.kill(pid(one, name), signal.SIGUSR1)
    one.until(f"{name} exited with code 1")
    again = int(one.until(rf"started {name}, pid (\d+), incarnation 2")[1])
    assert "--drill" not in Path(f"/proc/{again}/cmdline").read_text()


def test_a_process_that_holds_stays_where_it_is_until_somebody_kills_it(engine: MakeMember) -> None:
    one = engine("engine-core:load:hold")
    one.until("drill: hold in phase load")
    one.kill("engine core of rank 0")
    assert one.exit_code() == 128 + signal.SIGKILL


def test_an_api_server_dies_when_it_is_to_drain(engine: MakeMember) -> None:
    one = engine("api-server:drain:exit-1")
    one.until("ready after")
    one.process.send_signal(signal.SIGTERM)
    assert one.exit_code() == 1
    assert "drill: exit-1 in phase drain" in one.text()


# Not of the import: the leader's worker may be over with it, and the replica with that, before the other member has joined.
@pytest.mark.parametrize("phase", ["handshake", "load"])
def test_a_drill_of_workers_is_one_of_all_members(tmp_path: Path, phase: str) -> None:
    members = Members(tmp_path, members=2, workers_each=1, tensor=2)
    try:
        started = [members.start(number, f"--drill=worker:{phase}:exit-1") for number in (0, 1)]
        assert [one.exit_code() for one in started] == [1, 1]
    finally:
        members.close()
    for one in started:
        assert re.search(
            r"the engine ends: ExitCode: worker \d of rank 0( in member 1)? exited with code 1$", one.text(), re.MULTILINE
        )
