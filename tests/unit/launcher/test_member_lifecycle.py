"""The lives of a replica's launchers, without any process: whatever happens in whatever order, they come to one end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_story import CLEAN, KILLED, ready
from enginehouse_engine.launcher import member_messages, messages, remote_workers, termination
from enginehouse_engine.launcher.actions import Action, Kill, Report, Send, Start
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.member_lifecycle import MemberLifecycle
from enginehouse_engine.launcher.member_messages import Hello, reason_to_refuse
from enginehouse_engine.launcher.messages import MessageError
from enginehouse_engine.launcher.phase import Phase
from enginehouse_engine.launcher.process import API_SERVER, WORKER, Process
from enginehouse_engine.launcher.rank_set import RankSet
from enginehouse_engine.launcher.termination import Exit
from enginehouse_engine.launcher.unit import Unit
from enginehouse_engine.launcher.units import engine_units, member_units, ranks_of

RANKS, WORKERS, EACH = 2, 3, 2
"""Rank 0 has two workers in the leader and one in member 1; rank 1 one in member 1 and two in member 2."""
COMMON: dict[str, Any] = {
    "replica_uid": "uid",
    "startup_timeout_seconds": 100.0,
    "drain_timeout_seconds": 60.0,
    "hang_stall_seconds": 120.0,
    "now": 0.0,
}


@dataclass
class Launcher:
    """A life, and the processes that it has: the kernel does what it is asked to when a test says so."""

    number: int
    life: Lifecycle
    alive: list[Process] = field(default_factory=list)
    doomed: set[Process] = field(default_factory=set)
    asked: set[Process] = field(default_factory=set)
    closed: set[Process] = field(default_factory=set)
    peers: dict[Process, object] = field(default_factory=dict)
    reports: list[bool] = field(default_factory=list)
    """Of each exit that its monitor heard of: was it planned?"""
    pids: int = 100

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(processes=chosen):
                    for process in chosen:
                        if process.member == self.number:
                            self.pids += 1
                            self.alive.append(process)
                            self.take(self.life.started(process, pid=self.pids))
                            self.take(self.life.registered(process))
                            self.take(self.life.said(process, messages.Published({"of": str(process)})))
                case Kill(process=process) if process.member == self.number:
                    self.doomed.add(process)
                case Send(process=process, message=message) if process.member == self.number:
                    assert process in self.alive
                    if message["type"] == "stop":
                        self.asked.add(process)
                    if message["type"] == "peers":
                        assert len(message["records"]) == WORKERS + 1, "never partial"
                        self.peers[process] = message
                case Report(process=process, message=message) if process.member == self.number:
                    self.reports.append(message["planned"])

    def die(self, process: Process, exit: Exit) -> None:
        if process not in self.alive:
            return
        if process not in self.closed:
            self.closed.add(process)
            self.take(self.life.pipe_closed(process, bye=exit == CLEAN))
        self.alive.remove(process)
        self.take(self.life.exited(process, exit=exit, out_of_memory=False))

    def kernel(self) -> None:
        """Those that were killed are gone, and those that were asked have gone."""
        for process in list(self.alive):
            if process in self.doomed:
                self.die(process, KILLED)
            elif process in self.asked:
                self.die(process, CLEAN)


class Replica:
    """Three launchers, and the links between them."""

    def __init__(self) -> None:
        units = engine_units(api_servers=1, ranks=RANKS, workers=WORKERS, workers_each=EACH)
        self.leader = Launcher(0, Lifecycle(units=units, ranks=_ranks(), **COMMON))
        self.members = [Launcher(number, _member(number)) for number in (1, 2)]
        self.linked = {1, 2}
        self.joined: set[int] = set()
        self.leader.take(self.leader.life.begin())
        self.leader.take(self.leader.life.model_found())

    @property
    def all(self) -> list[Launcher]:
        return [self.leader, *self.members]

    def join(self, member: Launcher) -> None:
        """Its hello is taken: it gets its orders and starts."""
        if member.number not in self.joined and member.number in self.linked:
            self.joined.add(member.number)
            self.down(member)
            member.take(member.life.model_found())

    def up(self, member: Launcher) -> None:
        """The leader hears what the member has to say now."""
        if {member.number} <= self.linked & self.joined:
            report = msgspec.json.decode(msgspec.json.encode(_life(member).report()), type=member_messages.Report)
            self.leader.take(remote_workers.reported(self.leader.life, member.number, report))

    def down(self, member: Launcher) -> None:
        """The member hears its orders."""
        if {member.number} <= self.linked & self.joined:
            orders = remote_workers.orders(self.leader.life, member.number)
            again = msgspec.json.decode(msgspec.json.encode(orders), type=member_messages.Orders)
            assert again == orders
            member.take(_life(member).ordered(again))

    def cut(self, member: Launcher, *, by_member: bool = False) -> None:
        """What was said before still arrives: the connection is TCP's."""
        if {member.number} <= self.linked & self.joined:
            self.up(member)
            self.down(member)
            self.linked.discard(member.number)
            self.leader.take(remote_workers.lost(self.leader.life, member.number, reason="cut"))
            if not by_member:
                member.take(_life(member).leader_gone("cut"))

    def say_ready(self) -> None:
        """The API server knows every rank whose processes were all introduced."""
        cores = [process for process in self.leader.peers if process.role == "engine-core"]
        newest = {core.rank: core.incarnation for core in cores}
        servers = [process for process in self.leader.alive if process.role == API_SERVER]
        if len(newest) == RANKS and servers:
            fits = [fit for rank, number in newest.items() for fit in ready(rank or 0, incarnation=number).ranks]
            self.leader.take(self.leader.life.said(servers[0], messages.Ready(ranks=tuple(fits), max_context_length=64)))

    def settle(self) -> None:
        """Until nothing happens any more. A launcher that has ended closes its links."""
        for _ in range(12):
            for member in self.members:
                self.up(member)
                self.down(member)
            for launcher in self.all:
                launcher.kernel()
            for member in self.members:
                if self.leader.life.phase is Phase.ENDED or member.life.phase is Phase.ENDED:
                    self.cut(member)

    def serve(self) -> Replica:
        for member in self.members:
            self.join(member)
        self.settle()
        server = self.leader.life.units[0].processes[0]
        self.leader.take(self.leader.life.said(server, messages.Bound(endpoint="ipc://0")))
        self.say_ready()
        self.settle()
        assert [launcher.life.phase for launcher in self.all] == [Phase.SERVING] * 3
        return self

    def drain(self) -> None:
        server = self.leader.life.units[0].processes[0]
        self.leader.take(self.leader.life.said(server, messages.Drained()))
        self.settle()

    def words(self) -> list[list[tuple[int, str]]]:
        """Rank and state, as each monitor hears them."""
        return [[(rank["rank"], rank["state"]) for rank in launcher.life.state()["ranks"]] for launcher in self.all]

    def codes(self) -> list[int]:
        assert [launcher.life.phase for launcher in self.all] == [Phase.ENDED] * 3
        return [termination.exit_code(launcher.life.cause) for launcher in self.all]


def _member(number: int) -> MemberLifecycle:
    units: tuple[Unit, ...] = member_units(member=number, ranks=RANKS, workers=WORKERS, workers_each=EACH)
    return MemberLifecycle(units=units, leader="leader", name=f"member {number} of 3", ranks=_ranks(), **COMMON)


def _ranks() -> RankSet:
    return RankSet(RANKS, workers=WORKERS, workers_each=EACH)


def _life(member: Launcher) -> MemberLifecycle:
    assert isinstance(member.life, MemberLifecycle)
    return member.life


def worker(rank: int, index: int) -> Process:
    return Process(role=WORKER, rank=rank, index=index, incarnation=1, member=(rank * WORKERS + index) // EACH)


def test_parts_of_ranks_serve_when_the_leader_says_so_and_all_workers_know_all_peers() -> None:
    replica = Replica()
    assert replica.members[0].alive == [], "nothing starts before the leader has let it in"
    replica.serve()
    assert replica.words() == [[(0, "Serving"), (1, "Serving")], [(0, "Serving"), (1, "Serving")], [(1, "Serving")]]
    first, second = replica.leader.peers, replica.members[0].peers
    rank_0 = [message for process, message in [*first.items(), *second.items()] if process.rank == 0]
    assert len(rank_0) == WORKERS + 1
    assert all(message == rank_0[0] for message in rank_0)
    assert [launcher.life.deadline for launcher in replica.all] == [float("inf")] * 3


def test_an_end_in_order_is_no_death_for_anybody() -> None:
    replica = Replica().serve()
    replica.leader.take(replica.leader.life.asked_to_stop())
    replica.settle()
    assert all(launcher.alive for launcher in replica.members), "workers hold out until the leader is done"
    replica.drain()
    assert replica.codes() == [0, 0, 0]
    assert [set(launcher.reports) for launcher in replica.all] == [{True}] * 3


def test_a_member_that_is_asked_to_stop_has_all_drain_and_the_leaders_own_signal_cuts_nothing() -> None:
    replica = Replica().serve()
    member = replica.members[1]
    member.take(member.life.asked_to_stop())
    assert member.doomed == set()
    replica.settle()
    assert replica.leader.life.phase is Phase.DRAINING
    replica.leader.take(replica.leader.life.asked_to_stop())
    assert replica.leader.life.phase is Phase.DRAINING
    replica.drain()
    assert replica.codes() == [0, 0, 0]


def test_a_worker_elsewhere_dies_and_its_rank_with_it_while_the_other_goes_on() -> None:
    replica = Replica().serve()
    replica.members[1].die(worker(1, 2), KILLED)
    assert worker(1, 1) in replica.members[1].doomed, "at once, without asking the leader"
    replica.settle()
    assert replica.words() == [[(0, "Serving"), (1, "Dead")], [(0, "Serving"), (1, "Dead")], [(1, "Dead")]]
    assert replica.leader.life.phase is Phase.SERVING
    assert replica.members[1].life.phase is Phase.ENDED, "nothing lives in it"
    assert [launcher.reports.count(False) for launcher in replica.all] == [0, 0, 1], "told once, where it happened"
    causes = [launcher.life.cause.fields() for launcher in replica.all if launcher.life.cause]
    assert causes == [causes[0]] * 3
    assert (causes[0]["message"], causes[0]["signal"]) == ("worker 2 of rank 1 in member 2 was killed by SIGKILL", 9)


def test_a_member_that_hears_of_a_death_from_its_monitor_ends_with_its_cause_before_the_leader_says_so() -> None:
    replica = Replica().serve()
    member = replica.members[1]
    death = messages.Death(kind="Signal", message="worker 1 died", role="worker", rank=1, incarnation=1, signal=11)
    member.take(member.life.asked_to_end_ranks((1,), cause=termination.cause_told(death)))
    member.kernel()
    assert (member.life.phase, member.reports) == (Phase.ENDED, [True] * len(member.reports))
    assert termination.exit_code(member.life.cause) == 139


def test_a_member_whose_monitor_does_not_know_the_cause_waits_for_the_leader_to_tell_it() -> None:
    replica = Replica().serve()
    member = replica.members[1]
    replica.members[0].die(worker(1, 0), Exit(signal=11))
    unknown = messages.Death(kind="Unknown", message="pod-1 says that its part of rank 1 is dead, and not why")
    member.take(member.life.asked_to_end_ranks((1,), cause=termination.cause_told(unknown)))
    member.kernel()
    assert (member.alive, member.life.phase) == ([], Phase.STOPPING)
    replica.up(replica.members[0])
    replica.down(member)
    assert (member.life.phase, termination.exit_code(member.life.cause)) == (Phase.ENDED, 139)


def test_a_member_whose_replica_object_is_deleted_has_all_drain() -> None:
    replica = Replica().serve()
    replica.members[1].take(replica.members[1].life.replica_ends())
    replica.settle()
    replica.leader.take(replica.leader.life.replica_ends())
    replica.members[0].take(replica.members[0].life.asked_to_stop())
    assert replica.leader.life.phase is Phase.DRAINING
    replica.drain()
    assert replica.codes() == [0, 0, 0]


def test_a_rank_that_dies_in_a_drain_takes_no_other_with_it_in_its_member() -> None:
    replica = Replica().serve()
    member = replica.members[0]
    replica.leader.take(replica.leader.life.asked_to_stop())
    replica.settle()
    (victim, other) = member.alive
    member.die(victim, KILLED)
    replica.settle()
    assert member.alive == [other], "rank 1 finishes its requests"
    replica.drain()
    assert replica.codes()[:2] == [137, 137]


def test_a_death_that_began_before_the_leader_was_asked_to_end_and_fails_that_end_is_a_failure_of_its_member() -> None:
    replica = Replica().serve()
    member = replica.members[0]
    victim = member.alive[0]
    member.closed.add(victim)
    member.take(member.life.pipe_closed(victim, bye=False))
    replica.leader.take(replica.leader.life.asked_to_stop())
    replica.settle()
    replica.drain()
    assert replica.codes()[:2] == [137, 137]


def test_a_part_that_the_leader_ends_waits_for_the_cause_which_comes_when_the_kernel_has_told_it() -> None:
    replica = Replica().serve()
    member = replica.members[1]
    core = next(process for process in replica.leader.alive if process.role == "engine-core" and process.rank == 1)
    replica.leader.closed.add(core)
    replica.leader.take(replica.leader.life.pipe_closed(core, bye=False))
    replica.down(member)
    member.kernel()
    assert (member.alive, member.life.phase) == ([], Phase.STOPPING)
    replica.leader.die(core, Exit(signal=11))
    replica.down(member)
    assert member.life.phase is Phase.ENDED
    assert member.life.cause is not None
    assert (member.life.cause.message, termination.exit_code(member.life.cause)) == (
        "engine core of rank 1 was killed by SIGSEGV",
        139,
    )


def test_a_part_that_the_leader_ends_and_whose_leader_goes_before_it_told_the_cause_ends_all_the_same() -> None:
    replica = Replica().serve()
    member = replica.members[1]
    core = next(process for process in replica.leader.alive if process.role == "engine-core" and process.rank == 1)
    replica.leader.take(replica.leader.life.pipe_closed(core, bye=False))
    replica.down(member)
    member.kernel()
    member.take(_life(member).leader_gone("closed"))
    assert member.life.phase is Phase.ENDED
    assert member.life.cause is not None
    assert member.life.cause.message == "the leader at leader has ended what member 2 of 3 holds, and did not say why"


def test_who_died_first_is_known_although_its_peer_that_was_killed_is_gone_before() -> None:
    replica = Replica().serve()
    member, culprit, peer = replica.members[1], worker(1, 2), worker(1, 1)
    member.closed.add(culprit)
    member.take(member.life.pipe_closed(culprit, bye=False))
    member.die(peer, KILLED)
    replica.up(member)
    member.die(culprit, Exit(signal=11))
    replica.settle()
    assert replica.leader.life.cause is not None
    assert replica.leader.life.cause.message == "worker 2 of rank 1 in member 2 was killed by SIGSEGV"


@pytest.mark.parametrize("who", [0, 1], ids=["the leader", "a member"])
def test_a_replica_that_is_asked_to_stop_while_it_starts_ends_without_any_death(who: int) -> None:
    replica = Replica()
    for member in replica.members:
        replica.join(member)
    replica.all[who].take(replica.all[who].life.asked_to_stop())
    replica.settle()
    assert replica.codes() == [0, 0, 0]


def test_a_member_that_is_asked_twice_asks_its_own_workers() -> None:
    replica = Replica().serve()
    member = replica.members[1]
    for _ in range(2):
        member.take(member.life.asked_to_stop())
    assert (member.asked, member.doomed) == ({worker(1, 1), worker(1, 2)}, set())


def test_a_rank_that_spans_members_is_never_started_again() -> None:
    replica = Replica().serve()
    core = next(process for process in replica.leader.alive if process.role == "engine-core" and process.rank == 0)
    replica.leader.die(core, KILLED)
    replica.settle()
    assert replica.words()[0] == [(0, "Dead"), (1, "Serving")]
    assert replica.words()[1] == [(0, "Dead"), (1, "Serving")]


@pytest.mark.parametrize("by_member", [True, False], ids=["the member is gone", "the link is cut"])
def test_a_lost_link_is_the_death_of_all_that_lives_behind_it(by_member: bool) -> None:
    replica = Replica().serve()
    replica.cut(replica.members[1], by_member=by_member)
    replica.settle()
    assert replica.words()[0] == [(0, "Serving"), (1, "Dead")]
    cause = replica.leader.life.cause
    assert cause is not None
    assert "the connection to the launcher of member 2 is gone: cut" in cause.message
    if not by_member:
        assert replica.members[1].life.phase is Phase.ENDED
        assert termination.exit_code(replica.members[1].life.cause) == 1


@pytest.mark.parametrize("silent", [False, True])
def test_of_a_member_that_is_silent_the_leaders_own_monitor_is_told_else_the_members(silent: bool) -> None:
    replica = Replica().serve()
    actions = remote_workers.lost(replica.leader.life, 2, reason="cut", silent=silent)
    told = [action for action in actions if isinstance(action, Report) and not action.message["planned"]]
    assert {(action.process.member, action.process.rank, action.nobody_else_can) for action in told} == {(2, 1, silent)}
    assert {action.message["class"] for action in told} == {"Lost" if silent else "Exception"}


def test_what_a_member_may_not_say_is_an_error() -> None:
    replica = Replica().serve()
    foreign = _life(replica.members[0]).report()
    with pytest.raises(MessageError, match="worker 2 of rank 0 does not live in member 2"):
        remote_workers.reported(replica.leader.life, 2, foreign)
    with pytest.raises(MessageError, match="missing required field"):
        member_messages.decode_from_member(b'{"type": "report"}')
    assert member_messages.decode_from_member(b'{"type": "of a later version"}') is None


HELLO = Hello(
    version=1, replica_uid="u", member=0, members=3, workers_per_member=2, executor="Simulated", data=2, tensor=3, pipeline=1
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"member": 2}, ""),
        ({"member": 1}, "member 1 has joined already"),
        ({"member": 0}, "there is no member 0: they are 1 to 2"),
        ({"member": 3}, "there is no member 3: they are 1 to 2"),
        ({"member": 2, "version": 2}, "the leader has version 1, this member 2"),
        ({"member": 2, "replica_uid": "v\n"}, "the leader is of another replica than 'v\\n'"),
        ({"member": 2, "members": 4}, "the leader has members 3, this member 4"),
    ],
)
def test_who_may_join(changes: dict[str, object], reason: str) -> None:
    found = msgspec.structs.replace(HELLO, **changes)
    assert reason_to_refuse(found, expected=HELLO, joined=frozenset({1})) == reason


def test_a_stranger_is_not_told_the_uid_that_lets_it_in() -> None:
    expected = msgspec.structs.replace(HELLO, replica_uid="0c0ffee0")
    for name in Hello.__struct_fields__:
        other = "v" if isinstance(getattr(HELLO, name), str) else 63
        found = msgspec.structs.replace(HELLO, **{"replica_uid": "v", name: other})
        refusal = reason_to_refuse(found, expected=expected, joined=frozenset())
        assert refusal
        assert expected.replica_uid not in refusal


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"member": 3, "members": 9, "data": 5}, ""),
        ({"member": 1}, "member 1 has joined already"),
        ({"member": 0}, "there is no member 0"),
        ({"member": 3, "workers_per_member": 1}, "the leader has workers_per_member 2, this member 1"),
    ],
)
def test_with_ray_members_may_come_that_were_not_thought_of(changes: dict[str, object], reason: str) -> None:
    expected = msgspec.structs.replace(HELLO, executor="Ray")
    found = msgspec.structs.replace(expected, **changes)
    refusal = reason_to_refuse(found, expected=expected, joined=frozenset({1}))
    assert refusal.startswith(reason)
    assert bool(refusal) is bool(reason)


EVENTS = ("join", "up", "down", "ready", "kill", "exit", "kernel", "close", "signal", "drained", "cut", "settle")


@settings(max_examples=400, deadline=None)
@given(st.booleans(), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 2), st.integers(0, 6)), max_size=40))
def test_every_story_of_a_replica_ends_in_all_members_and_no_death_is_forgotten(
    serves: bool, events: list[tuple[str, int, int]]
) -> None:
    replica = Replica()
    if serves:
        replica.serve()
    signalled, cut = list[Launcher](), set[int | None]()
    for event, number, which in events:
        launcher = replica.all[number]
        member = replica.members[number % 2]
        victim = launcher.alive[which % len(launcher.alive)] if launcher.alive else None
        drained = replica.leader.life.phase is Phase.DRAINING
        over = {unit.rank for unit in ranks_of(replica.leader.life.units) if unit.over}
        match event:
            case "join":
                replica.join(member)
            case "up":
                replica.up(member)
            case "down":
                replica.down(member)
            case "ready":
                replica.say_ready()
            case "kill" if victim:
                cuts = drained and victim.rank not in over and victim not in launcher.doomed
                if cuts and victim.role == WORKER and number > 0:
                    cut.add(victim.rank)
                launcher.die(victim, Exit(signal=11))
            case "exit" if victim:
                launcher.die(victim, Exit(exit_code=1))
            case "close" if victim and victim not in launcher.closed:
                launcher.closed.add(victim)
                launcher.take(launcher.life.pipe_closed(victim, bye=False))
            case "kernel":
                launcher.kernel()
            case "signal":
                signalled.append(launcher)
                if drained and launcher is replica.leader:
                    cut &= over  # Asked once more it cuts its requests itself, also of ranks whose death it has not heard of.
                launcher.take(launcher.life.asked_to_stop())
            case "drained":
                replica.drain()
            case "cut":
                replica.cut(member)
            case "settle":
                replica.settle()
    for member in replica.members:
        replica.join(member)
    replica.settle()
    for launcher in replica.all:
        for _ in range(3):  # SIGTERM, once more, and once more
            launcher.take(launcher.life.asked_to_stop())
    replica.settle()
    for _ in range(3):
        for launcher in replica.all:
            launcher.take(launcher.life.clock(launcher.life.now + 200) if launcher.life.phase is not Phase.ENDED else [])
        replica.settle()
    codes = replica.codes()
    assert [launcher.alive for launcher in replica.all] == [[], [], []]
    for launcher, code in zip(replica.all, codes, strict=True):
        assert (code == 0) is (launcher.life.state()["state"] == "Ended")
    for launcher, code in zip(replica.members, codes[1:], strict=True):
        # What had died while it served on is no failure of an end that it, or the leader, was asked for.
        planned = launcher in signalled or _life(launcher)._leader_state in ("Draining", "Ended")
        assert code != 0 or False not in launcher.reports or planned
    assert not cut or codes[0] != 0, "a death that cuts requests of a replica that ends is a failure"
