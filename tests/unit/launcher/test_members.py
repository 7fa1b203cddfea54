"""A replica of several members: their launchers as real processes that find each other, serve together, and end together."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from members import Members, ask, expected_text, left

MakeMembers = Callable[..., Members]


@pytest.fixture
def members(tmp_path: Path) -> Iterator[MakeMembers]:
    made: list[Members] = []

    def make(**shape: int) -> Members:
        made.append(Members(tmp_path, **shape))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "shape",
    [
        {"members": 2, "workers_each": 1, "tensor": 2},
        {"members": 2, "workers_each": 2, "data": 4},
        {"members": 3, "workers_each": 2, "data": 2, "tensor": 3},
        {"members": 3, "workers_each": 1, "pipeline": 3},
    ],
    ids=["one rank over two", "ranks of their own", "ranks that straddle", "stages"],
)
def test_members_answer_as_one_process_does_and_end_in_order_with_nothing_left(members: MakeMembers, shape: dict[str, int]) -> None:
    memory_before = set(os.listdir("/dev/shm"))
    leader, *others = members(**shape).start_all()
    for _ in range(2 * shape.get("data", 1)):
        answer = ask(leader)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == expected_text()
    pids = [pid for member in (leader, *others) for pid in member.pids()]
    leader.process.send_signal(signal.SIGTERM)
    assert [member.exit_code() for member in (leader, *others)] == [0] * (1 + len(others))
    assert left(pids) == []
    assert set(os.listdir("/dev/shm")) <= memory_before


def test_a_member_that_is_asked_to_stop_has_the_whole_replica_drain(members: MakeMembers) -> None:
    leader, other = members(members=2, workers_each=1, tensor=2).start_all()
    other.process.send_signal(signal.SIGTERM)
    leader.until("draining")
    leader.process.send_signal(signal.SIGTERM)
    assert (leader.exit_code(), other.exit_code()) == (0, 0)
    assert "stop" in other.text()


def test_the_only_rank_dies_with_its_worker_elsewhere_and_both_launchers_name_it(members: MakeMembers) -> None:
    leader, other = members(members=2, workers_each=1, tensor=2).start_all()
    other.kill("worker 1 of rank 0 in member 1")
    assert (leader.exit_code(), other.exit_code()) == (137, 137)
    for member in (leader, other):
        assert "Signal: worker 1 of rank 0 in member 1 was killed by SIGKILL" in member.text()
    assert left(leader.pids() + other.pids()) == []


@pytest.mark.parametrize("victim", ["a worker", "the launcher"])
def test_a_rank_that_lives_elsewhere_dies_alone_and_is_not_started_again(members: MakeMembers, victim: str) -> None:
    leader, other = members(members=2, workers_each=2, data=2, tensor=2).start_all()
    if victim == "a worker":
        other.kill("worker 1 of rank 1 in member 1")
    else:
        other.process.kill()
    assert other.exit_code() == (137 if victim == "a worker" else -9)
    leader.until("engine core of rank 1 was killed")
    assert left(other.pids()) == []
    for _ in range(4):
        assert ask(leader).json()["choices"][0]["text"] == expected_text()
    assert "incarnation 2" not in leader.text()
    leader.process.send_signal(signal.SIGTERM)
    assert leader.exit_code() == 0, "it served on, and the end was asked for"
    if victim == "the launcher":
        leader.until("the link to member 1 is gone")


def test_a_core_that_dies_takes_its_workers_elsewhere_along_and_they_tell_its_cause(members: MakeMembers) -> None:
    leader, other = members(members=2, workers_each=2, data=2, tensor=2).start_all()
    leader.kill("engine core of rank 1")
    assert other.exit_code() == 137
    assert "Signal: engine core of rank 1 was killed by SIGKILL" in other.text()
    assert ask(leader).status_code == 200


def test_a_rank_in_the_leader_alone_is_started_again_beside_one_that_is_not(members: MakeMembers) -> None:
    leader, other = members(members=2, workers_each=2, data=2, tensor=2).start_all()
    leader.kill("worker 1 of rank 0")
    leader.until(r"started worker 1 of rank 0, pid \d+, incarnation 2")
    leader.until("rank 0 serves(.|\n)*rank 0 serves")
    assert ask(leader).status_code == 200
    leader.process.send_signal(signal.SIGTERM)
    assert (leader.exit_code(), other.exit_code()) == (0, 0)


def test_members_whose_leader_is_killed_end_at_once_and_say_so(members: MakeMembers) -> None:
    leader, *others = members(members=3, workers_each=1, tensor=3).start_all()
    leader.process.kill()
    assert [member.exit_code() for member in others] == [1, 1]
    for member in others:
        member.until("cannot go on: its leader at 127[0-9.]* is gone: it closed the connection")
    assert left([pid for member in (leader, *others) for pid in member.pids()]) == []


def test_a_member_may_come_before_the_leader_and_another_long_after(members: MakeMembers) -> None:
    replica = members(members=3, workers_each=1, tensor=3)
    first = replica.start(1)
    first.until("is not there yet")
    leader = replica.start(0)
    leader.until("member 1 has joined")
    last = replica.start(2)
    assert ask(leader).json()["choices"][0]["text"] == expected_text()
    last.until("ready after")


def test_a_member_that_does_not_come_is_named(members: MakeMembers) -> None:
    leader = members(members=2, workers_each=1, tensor=2).start(0, "--startup-timeout-seconds=4")
    assert leader.exit_code() == 1
    leader.until(r"StartupTimeout: not ready after 4 s, waiting for: .*worker 1 of rank 0 in member 1 \(not started\)")


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_leader_that_does_not_come_is_named(members: MakeMembers, host: str) -> None:
    replica = members(members=2, workers_each=1, tensor=2)
    member = replica.start(1, f"--leader={host}", "--startup-timeout-seconds=1")
    assert member.exit_code() == 1
    member.until(rf"StartupTimeout: not ready after 1 s, waiting for: the leader at {host} to let member 1 of 2 in")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--replica-uid=another"], "the leader is of another replica than 'another'"),
        (["--tensor-parallel=1", "--pipeline-parallel=2"], "the leader has tensor 2, this member 1"),
    ],
)
def test_a_member_of_something_else_is_refused_and_the_right_one_is_still_let_in(
    members: MakeMembers, flags: list[str], reason: str
) -> None:
    replica = members(members=2, workers_each=1, tensor=2)
    leader = replica.start(0)
    leader.until("started worker 0")
    stranger = replica.start(1, *flags)
    assert stranger.exit_code() == 78
    assert f"refused member 1 of 2: {reason}" in stranger.text()
    # Neither an open connection that says nothing nor one that talks nonsense keeps anybody out.
    silent = socket.create_connection((replica.leader_address, 7411))
    with socket.create_connection((replica.leader_address, 7411)) as nonsense:
        nonsense.sendall(b"GET / HTTP/1.1\r\n\r\n")
        leader.until("a connection to the members' port came to nothing: .* announced a message of")
    for number, words in enumerate((b'{"type":"\xff"}', b'{"type":"hello","a":' + b"[" * 4000), start=1):
        with socket.create_connection((replica.leader_address, 7411)) as nonsense:
            nonsense.sendall(struct.pack(">I", len(words)) + words)
            leader.until(f"(a member was refused(.|\n)*){{{number + 1}}}")
    with socket.create_connection((replica.leader_address, 7411)) as hoarder:
        hoarder.sendall(struct.pack(">I", 1 << 20))
        leader.until("announced a message of 1048576 bytes, at most 4096 are allowed")
    right = replica.start(1)
    assert ask(leader).status_code == 200
    second = replica.start(1)
    assert second.exit_code() == 78
    assert "member 1 has joined already" in second.text()
    assert right.process.poll() is None
    silent.close()
