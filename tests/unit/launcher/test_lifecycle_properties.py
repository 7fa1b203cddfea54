"""Whatever happens to the processes of an engine, in whatever order: what the launcher decides keeps its promises."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_story import CLEAN, KILLED, Story, ready
from enginehouse_engine.launcher import messages, termination
from enginehouse_engine.launcher.actions import Action, FetchModel, Kill, Report, Send, Start
from enginehouse_engine.launcher.phase import Phase
from enginehouse_engine.launcher.process import API_SERVER, Process
from enginehouse_engine.launcher.termination import Exit
from enginehouse_engine.launcher.unit import Unit, UnitState

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
    "signal",
    "abort",
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
        self.asked: set[Process] = set()
        self.published: set[Process] = set()
        self.endpoints: dict[Process, str] = {}
        self.newest: dict[_Unit, int] = {}
        self.died = False
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
                case Report(process=process):
                    assert process not in self.reported, "a process ends once"
                    self.reported.add(process)
                case FetchModel():
                    raise AssertionError("the model is there")
        quiet = self.life.phase is Phase.ENDED or (self.life.phase is Phase.SERVING and not self.restarting())
        assert math.isinf(self.life.deadline) is quiet, "whoever waits has a deadline, and nobody else"

    def restarting(self) -> list[Unit]:
        return [unit for unit in self.life.units if unit.state is UnitState.RESTARTING]

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
                assert [(one["rank"], one["incarnation"]) for one in message["ranks"]] == [
                    (rank, self.newest["rank", rank, 0]) for rank in (0, 1)
                ]

    def reap(self, process: Process, exit: Exit) -> None:
        planned = process in self.doomed or (process in self.asked and exit == CLEAN)
        self.died = self.died or not planned
        self.alive.remove(process)
        self.take(self.life.exited(process, exit=exit, out_of_memory=False))
        assert process in self.reported

    def happens(self, event: str, number: int) -> None:
        match event:
            case "signal":
                self.take(self.life.asked_to_stop())
            case "abort":
                self.take(self.life.asked_to_end_ranks((number % 3,)))
            case "clock":
                self.now += 100 * number
                self.take(self.life.clock(self.now))
            case "deadline" if self.life.deadline < math.inf:
                self.now = max(self.now, self.life.deadline)
                self.take(self.life.clock(self.now))
            case _ if self.alive:
                self.happens_to(self.alive[number % len(self.alive)], event)

    def happens_to(self, process: Process, event: str) -> None:
        life = self.life
        if event == "register" and process not in self.registered:
            pid = next(unit.seen[process].pid for unit in life.units if process in unit.seen)
            assert life.may_register(process, pid=pid) == ""
            self.registered.add(process)
            self.take(life.registered(process))
        elif event == "dying" and process in self.doomed:
            self.doomed.discard(process)
            life.was_dying(process)
        elif event.startswith("reap"):
            self.reap(process, {"0": CLEAN, "1": Exit(exit_code=1), "9": KILLED}[event[-1]])
        elif process not in self.registered:
            return
        elif event == "bound" and process.role == API_SERVER and process not in self.endpoints:
            self.endpoints[process] = f"ipc://{process.index}/{process.incarnation}"
            self.take(life.said(process, messages.Bound(endpoint=self.endpoints[process])))
        elif event == "published" and process.rank is not None:
            self.published.add(process)
            self.take(life.said(process, messages.Published(record={"of": process.incarnation})))
        elif event == "ready" and process.role == API_SERVER and process in self.endpoints:
            fits = [fit for rank in (0, 1) for fit in ready(rank, incarnation=self.newest["rank", rank, 0]).ranks]
            self.take(life.said(process, messages.Ready(ranks=tuple(fits), max_context_length=64)))
        elif event == "drained":
            self.take(life.said(process, messages.Drained()))
        elif event.startswith("close") and process not in self.closed:
            bye = event.endswith("bye")
            self.died = self.died or not (process in self.doomed or (bye and process in self.asked))
            self.closed.add(process)
            self.take(life.pipe_closed(process, bye=bye))

    def serve(self) -> None:
        for event in ("register", "bound", "published", "ready"):
            for process in list(self.alive):
                self.happens_to(process, event)

    def end(self) -> None:
        """Nobody says anything any more; the kernel does what it is asked to."""
        self.take(self.life.asked_to_stop())
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
        assert not world.died or world.newest != dict.fromkeys(world.newest, 1), "no death is forgotten but one made good"
    else:
        assert termination.exit_code(cause) != 0
        assert world.life.state()["state"] == "Failed"
