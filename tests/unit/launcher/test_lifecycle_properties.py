"""Whatever happens to the processes of an engine, in whatever order: what the launcher decides keeps its promises."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_story import CLEAN, KILLED, Story, ready
from enginehouse_engine.launcher import messages, termination
from enginehouse_engine.launcher.actions import Action, FetchModel, Kill, Report, Send, Start
from enginehouse_engine.launcher.phase import Phase
from enginehouse_engine.launcher.process import API_SERVER, Process
from enginehouse_engine.launcher.termination import Cause, Exit
from enginehouse_engine.launcher.unit import UnitState

EVENTS = (
    "register",
    "bound",
    "published",
    "ready",
    "drained",
    "close",
    "close with bye",
    "dying",
    "reap 0",
    "reap 1",
    "reap 9",
    "stopped",
    "continued",
    "pong",
    "signal",
    "abort",
    "resize",
    "rank drained",
    "died elsewhere",
    "replica ends",
    "clock",
    "deadline",
)

_Unit = tuple[str, int | None, int]


def _unit(process: Process) -> _Unit:
    return (API_SERVER, None, process.index) if process.role == API_SERVER else ("rank", process.rank, 0)


class World:
    """The processes, and the promises, checked at every step."""

    def __init__(self) -> None:
        self.story = Story(servers=2, ranks=2, workers=1)
        self.life = self.story.life
        self.now = 0.0
        self.alive: list[Process] = []
        self.registered: set[Process] = set()
        self.reported: set[Process] = set()
        self.closed: set[Process] = set()
        self.doomed: set[Process] = set()
        self.dying: set[Process] = set()
        """Of something else, when they were to be killed."""
        self.asked: set[Process] = set()
        self.published: set[Process] = set()
        self.endpoints: dict[Process, str] = {}
        self.newest: dict[_Unit, int] = {}
        self.died = False
        self.resized = False
        self.forgiven: set[Process] = set()
        """Of units that were lost already when the engine, which went on without them, was asked to end."""
        self.life.begin()
        self.take(self.life.model_found())

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(processes=chosen):
                    self.start(chosen)
                case Kill(process=process):
                    assert process in self.alive
                    self.doomed.add(process)
                case Send(process=process, message=message):
                    assert process in self.registered
                    assert process in self.alive
                    self.check(process, message)
                case Report(process=process, message={"exitCode": None, "signal": None}):
                    assert process in self.alive, "its end is overdue"
                    self.died = True
                case Report(process=process):
                    assert process not in self.reported, "a process ends once"
                    self.reported.add(process)
                case FetchModel():
                    raise AssertionError("the model is there")
        if self.life.phase is Phase.SERVING:
            for unit in self.life.units:
                comes = unit.state in (UnitState.STARTING, UnitState.RESTARTING)
                is_asked = unit.leaves and bool(self.asked & unit.seen.keys() - self.doomed)
                drains = unit.state is UnitState.DRAINING and (not unit.over or is_asked or unit.cut)
                assert math.isinf(unit.deadline) or comes or drains, "nobody else has a deadline"
                assert unit.deadline < math.inf or not (comes or drains), "whoever waits has a deadline"
        else:
            assert math.isinf(self.life.deadline) is (self.life.phase is Phase.ENDED), "whoever does not serve has one"

    def start(self, chosen: tuple[Process, ...]) -> None:
        assert self.life.phase in (Phase.STARTING, Phase.SERVING), "nothing is started after the end began"
        for unit in {_unit(process) for process in chosen}:
            incarnations = {process.incarnation for process in chosen if _unit(process) == unit}
            assert incarnations == {self.newest.get(unit, 0) + 1}
            assert not [process for process in self.alive if _unit(process) == unit], "only when all of the last one are reaped"
            self.newest[unit] = incarnations.pop()
        for process in chosen:
            self.alive.append(process)
            self.take(self.life.started(process, pid=self.story.pid()))

    def check(self, process: Process, message: dict[str, Any]) -> None:
        match message["type"]:
            case "stop":
                self.asked.add(process)
            case "addresses":
                living = {self.endpoints[server] for server in self.alive if server in self.endpoints}
                assert {front_end["endpoint"] for front_end in message["frontEnds"]} <= living
            case "peers":
                rank = [other for other in self.alive if _unit(other) == _unit(process)]
                assert message["incarnation"] == process.incarnation
                assert {(one["role"], one["index"]) for one in message["records"]} == {(one.role, one.index) for one in rank}
                assert all(one["record"] == {"of": process.incarnation} for one in message["records"])
                assert set(rank) <= self.published
            case "ranks":
                told = [(one["rank"], one["incarnation"]) for one in message["ranks"]]
                assert [rank for rank, _ in told] == sorted({rank for rank, _ in told})
                assert told[0][0] == 0
                for rank, incarnation in told:
                    is_about_to_start = not [other for other in self.alive if other.rank == rank]
                    assert incarnation - self.newest.get(("rank", rank, 0), 0) in ((0, 1) if is_about_to_start else (0,))

    def reap(self, process: Process, exit: Exit) -> None:
        planned = process in self.doomed | self.forgiven or (process in self.asked and exit == CLEAN)
        self.died = self.died or not planned
        self.alive.remove(process)
        self.take(self.life.exited(process, exit=exit, out_of_memory=False))
        assert process in self.reported

    def happens(self, event: str, number: int) -> None:
        match event:
            case "signal":
                self.asked_to_end(self.life.asked_to_stop)
            case "abort":
                self.asked_to_end(lambda: self.life.asked_to_end_ranks((number % 3,)))
            case "died elsewhere":
                cause = Cause(termination.SIGNAL, "worker 9 died", exit=KILLED)
                actions = self.life.asked_to_end_ranks((number % 3,), cause=cause)
                self.died = self.died or bool(actions)
                self.take(actions)
            case "replica ends":
                self.asked_to_end(self.life.replica_ends)
            case "resize":
                self.resized = True
                self.take(self.life.resized(1 + number % 3))
            case "clock":
                self.now += 20 * number
                self.take(self.life.clock(self.now))
                self.take(self.life.look_for_hangs())
            case "deadline" if self.life.deadline < math.inf:
                self.now = max(self.now, self.life.deadline)
                self.take(self.life.clock(self.now))
            case _ if self.alive:
                self.happens_to(self.alive[number % len(self.alive)], event)

    def asked_to_end(self, ask: Callable[[], list[Action]]) -> None:
        """What was lost while the others went on is no failure of a planned end."""
        served = self.life.phase is Phase.SERVING
        lost = {process for unit in self.life.units if unit.over for process in unit.seen}
        actions = ask()
        if served and self.life.phase is not Phase.SERVING:
            self.forgiven |= lost
            self.died = False
        self.take(actions)

    def happens_to(self, process: Process, event: str) -> None:
        life = self.life
        if event == "register" and process not in self.registered:
            pid = next(unit.seen[process].pid for unit in life.units if process in unit.seen)
            assert self.story.refusal(process, pid=pid) == ""
            self.registered.add(process)
            self.take(life.registered(process))
        elif event == "dying" and process in self.doomed:
            self.doomed.discard(process)
            self.dying.add(process)
            life.was_dying(process)
        elif event.startswith("reap"):
            self.reap(process, {"0": CLEAN, "1": Exit(exit_code=1), "9": KILLED}[event[-1]])
        elif event == "stopped":
            life.stopped(process, number=signal.SIGSTOP)
        elif event == "continued":
            life.continued(process)
        elif process not in self.registered:
            return
        elif event == "pong":
            self.take(life.said(process, messages.Pong(steps=1, requests=1)))
        elif event == "bound" and process.role == API_SERVER and process not in self.endpoints:
            self.endpoints[process] = f"ipc://{process.index}/{process.incarnation}"
            self.take(life.said(process, messages.Bound(endpoint=self.endpoints[process])))
        elif event == "published" and process.rank is not None:
            self.published.add(process)
            self.take(life.said(process, messages.Published(record={"of": process.incarnation})))
        elif event == "ready" and process.role == API_SERVER and process in self.endpoints:
            here = [rank for _, rank, _ in self.newest if rank is not None]
            fits = [fit for rank in here for fit in ready(rank, incarnation=self.newest["rank", rank, 0]).ranks]
            self.take(life.said(process, messages.Ready(ranks=tuple(fits), max_context_length=64)))
        elif event == "drained":
            self.take(life.said(process, messages.Drained()))
        elif event == "rank drained" and process.role == API_SERVER:
            seen = next(unit.seen[process] for unit in life.units if process in unit.seen)
            for one in seen.told.get("ranks", {"ranks": []})["ranks"]:
                if one["state"] == "Draining" and (one["rank"], one["incarnation"]) not in seen.drained_ranks:
                    self.take(life.said(process, messages.RankDrained(one["rank"], one["incarnation"])))
        elif event.startswith("close") and process not in self.closed:
            bye = event.endswith("bye")
            self.died = self.died or not (process in self.doomed | self.forgiven or (bye and process in self.asked))
            self.closed.add(process)
            self.take(life.pipe_closed(process, bye=bye))

    def serve(self) -> None:
        for event in ("register", "bound", "published", "ready"):
            for process in list(self.alive):
                self.happens_to(process, event)

    def settle(self) -> None:
        """Everybody does what is expected of him, until nothing more happens."""
        for _ in range(12):
            for process in list(self.alive):
                if process in self.doomed | self.dying | self.closed:
                    self.reap(process, KILLED)
                elif process in self.asked:
                    self.reap(process, CLEAN)
            for event in ("register", "bound", "published", "ready", "rank drained", "drained"):
                for process in list(self.alive):
                    if process in self.alive:
                        self.happens_to(process, event)

    def end(self) -> None:
        """Nobody says anything any more; the kernel does what it is asked to."""
        self.asked_to_end(self.life.asked_to_stop)
        for _ in range(5):
            for process in [process for process in self.alive if process in self.doomed]:
                self.reap(process, KILLED)
            self.happens("deadline", 0)


@settings(max_examples=300)
@given(st.booleans(), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 8)), max_size=80))
def test_every_story_ends_and_keeps_every_promise_on_the_way(serves: bool, events: list[tuple[str, int]]) -> None:
    world = World()
    if serves:
        world.serve()
    for event, number in events:
        fallen = world.life._fallen[:1]
        first = world.life._own_cause or (fallen[0].cause if fallen else None)
        world.happens(event, number)
        if first is not None and fallen == world.life._fallen[:1]:
            now = world.life.cause
            assert now is not None
            assert now == first or now.exit.signal is not None, "the first cause is kept, but for a signal that it followed from"
    world.end()
    assert world.life.phase is Phase.ENDED
    cause = world.life.cause
    if cause is None:
        assert world.life.state()["state"] == "Ended"
        made_good = world.newest != dict.fromkeys(world.newest, 1)
        assert not world.died or made_good or world.resized, "no death is forgotten but one made good, or of one that left"
    else:
        assert termination.exit_code(cause) != 0
        assert world.life.state()["state"] == "Failed"


@settings(max_examples=300)
@given(st.booleans(), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 8)), max_size=80), st.integers(0, 2))
def test_whatever_happens_in_a_resize_it_comes_to_the_wanted_ranks_or_to_a_said_end(
    serves: bool, events: list[tuple[str, int]], last: int
) -> None:
    world = World()
    if serves:
        world.serve()
    for event, number in events:
        world.happens(event, number)
    world.happens("resize", last)
    world.settle()
    words = {rank["rank"]: rank["state"] for rank in world.life.state()["ranks"]}
    if world.life.phase is Phase.SERVING:
        stays = [words[rank] for rank in range(last + 1)]
        assert set(stays) <= {"Serving", "Dead"}
        # Nothing that lives leaves before one that stays serves.
        assert set(words) == set(range(last + 1)) or "Serving" not in stays
        left = [process for process in world.alive if process.rank is not None and process.rank not in words]
        assert left == [], "nothing is left of those that left"
    else:
        world.happens("deadline", 0)
        world.settle()
        world.happens("deadline", 0)
        assert world.life.phase is Phase.ENDED
