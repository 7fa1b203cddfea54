"""Who is found to hang, and who is not, without any process or clock."""

from __future__ import annotations

import math
import signal

import pytest

from engine_story import CLEAN, KILLED, Story, killed, message_of, ready, reported, told
from enginehouse_engine.launcher import messages, termination
from enginehouse_engine.launcher.actions import Action
from enginehouse_engine.launcher.hang import HangWatch
from enginehouse_engine.launcher.messages import Pong
from enginehouse_engine.launcher.phase import Phase
from enginehouse_engine.launcher.process import ENGINE_CORE, WORKER, Process

STALL = 120.0
PERIOD = STALL / 4
CORE = Process(role=ENGINE_CORE, rank=0, index=0, incarnation=1)
OTHER = Process(role=ENGINE_CORE, rank=1, index=0, incarnation=1)
HELPER = Process(role=WORKER, rank=0, index=1, incarnation=1)


class Time:
    """A watch whose owner wakes when it is due, or when an answer comes."""

    def __init__(self) -> None:
        self.watch = HangWatch(STALL)
        self.asked: list[tuple[float, Process]] = []
        self.hung: list[tuple[float, Process, str]] = []

    def at(self, now: float, *, serving: tuple[Process, ...] = (CORE,)) -> None:
        look = self.watch.look(now, asked=serving)
        self.asked += [(now, process) for process in look.ask]
        self.hung += [(now, process, why) for process, why in look.hung]

    def until(self, end: float, *, serving: tuple[Process, ...] = (CORE,)) -> None:
        """Wakes whenever it is due."""
        while self.watch.due <= end:
            self.at(self.watch.due, serving=serving)

    def answers(self, now: float, *, steps: int = 0, requests: int = 0, process: Process = CORE) -> None:
        self.watch.answered(process, Pong(steps=steps, requests=requests), now=now)


def test_without_anybody_to_ask_there_is_no_timer() -> None:
    time = Time()
    time.at(5.0, serving=())
    assert time.watch.due == math.inf
    time.at(6.0)
    assert time.watch.due == 6.0 + PERIOD
    time.at(7.0, serving=())
    assert time.watch.due == math.inf


def test_one_that_answers_is_asked_four_times_per_stall_and_left_alone_for_ever() -> None:
    time = Time()
    time.at(0.0)
    for turn in range(1, 41):
        time.until(turn * PERIOD)
        time.answers(turn * PERIOD + 0.1)
    assert [now for now, _ in time.asked] == [turn * PERIOD for turn in range(1, 41)]
    assert time.hung == []


def test_one_that_owes_an_answer_for_the_stall_time_is_hung_and_was_asked_once() -> None:
    time = Time()
    time.at(0.0)
    time.until(10 * STALL)
    assert time.asked[0] == (PERIOD, CORE)
    assert time.hung[0] == (PERIOD + STALL, CORE, "has not answered for 120 s")
    assert len([now for now, _ in time.asked if now <= PERIOD + STALL]) == 1


@pytest.mark.parametrize("step_seconds", [1.0, PERIOD, 2.5 * PERIOD, STALL - 0.01])
def test_a_step_that_is_shorter_than_the_stall_time_is_no_hang_whenever_it_begins(step_seconds: float) -> None:
    """Also one that begins just before it is asked, for ever after the last one; an answer comes between two steps."""
    for first in (0.0, PERIOD - 0.01, PERIOD):
        time = Time()
        time.at(0.0)
        for step in range(1, 20):
            end = first + step * step_seconds
            time.until(end - 0.001)
            time.answers(end, steps=step, requests=3)
            time.at(end)
        assert time.hung == []


def test_a_core_that_has_requests_and_computes_nothing_is_hung_although_it_answers() -> None:
    time = Time()
    time.at(0.0)
    for turn in range(1, 10):
        time.until(turn * PERIOD)
        time.answers(turn * PERIOD, steps=7, requests=2)
    assert time.hung[0] == (PERIOD + STALL, CORE, "has requests and has computed no step for 120 s")


@pytest.mark.parametrize(
    ("answers"),
    [
        [(7, 0)] * 12,
        [(step, 2) for step in range(12)],
        [(7, step % 2) for step in range(12)],
    ],
    ids=["idle", "at work", "requests that come and go"],
)
def test_a_core_that_is_idle_or_moves_is_left_alone(answers: list[tuple[int, int]]) -> None:
    time = Time()
    time.at(0.0)
    for turn, (steps, requests) in enumerate(answers, 1):
        time.until(turn * PERIOD)
        time.answers(turn * PERIOD, steps=steps, requests=requests)
    assert time.hung == []


def test_one_that_was_stopped_and_not_continued_is_hung_by_name_of_the_signal_whoever_it_is() -> None:
    time = Time()
    time.watch.stopped(HELPER, number=signal.SIGTSTP, now=3.0)
    time.at(3.0, serving=())
    assert time.watch.due == 3.0 + STALL
    time.until(3.0 + STALL, serving=())
    assert time.hung == [(3.0 + STALL, HELPER, "was stopped by SIGTSTP and not continued for 120 s")]
    assert time.watch.due == math.inf, "said once"


def test_one_that_goes_on_in_time_is_no_hang_and_the_next_stop_counts_anew() -> None:
    time = Time()
    time.watch.stopped(HELPER, number=signal.SIGSTOP, now=0.0)
    time.at(0.0, serving=())
    time.watch.forget(HELPER)
    time.at(STALL - 1, serving=())
    time.watch.stopped(HELPER, number=signal.SIGSTOP, now=STALL)
    time.at(STALL, serving=())
    assert (time.hung, time.watch.due) == ([], 2 * STALL)


@pytest.mark.parametrize("silent", ["stopped", "asked", "going round in circles"])
def test_a_launcher_that_was_itself_held_up_condemns_nobody_and_waits_anew(silent: str) -> None:
    """It was stopped, or the machine was: what the others did meanwhile is not known, and their answers may come late."""
    time = Time()
    time.at(0.0)
    if silent == "stopped":
        time.watch.stopped(CORE, number=signal.SIGSTOP, now=0.0)
    time.until(2 * PERIOD)
    if silent == "going round in circles":
        time.answers(2 * PERIOD, steps=1, requests=1)
    woken = 50 * STALL
    time.at(woken)
    assert time.hung == []
    time.until(woken + STALL - 0.1)
    assert time.hung == []
    if silent == "going round in circles":
        time.answers(woken + STALL, steps=1, requests=1)
        time.at(woken + STALL)
    time.until(woken + STALL)
    assert [(now, process) for now, process, _ in time.hung] == [(woken + STALL, CORE)]


def test_a_launcher_that_is_a_little_late_still_finds_a_hang() -> None:
    time = Time()
    time.at(0.0)
    while not time.hung and time.watch.due < 10 * STALL:
        time.at(time.watch.due + PERIOD / 2)
    assert time.hung[0][1] == CORE


def test_each_is_judged_by_its_own_answers_and_a_new_incarnation_begins_anew() -> None:
    time = Time()
    both = (CORE, OTHER)
    time.at(0.0, serving=both)
    time.until(PERIOD, serving=both)
    time.answers(PERIOD, process=OTHER)
    again = Process(role=ENGINE_CORE, rank=0, index=0, incarnation=2)
    time.at(2 * PERIOD, serving=(again, OTHER))
    assert [process for now, process in time.asked if now == 2 * PERIOD] == [again, OTHER]
    time.answers(2 * PERIOD, process=CORE)
    time.answers(2 * PERIOD, process=OTHER)
    time.until(2 * PERIOD + STALL, serving=(again, OTHER))
    assert [process for _, process, _ in time.hung] == [again]


# What the launcher makes of it


class Watched(Story):
    """An engine that serves and whose time goes on: processes that are not silent answer at once."""

    def until(self, end: float, *, silent: tuple[Process, ...] = (), requests: int = 0) -> list[Action]:
        actions: list[Action] = []
        while self.life.wakes_at <= end:
            done = self.life.clock(self.life.wakes_at) + self.life.look_for_hangs()
            actions += done
            for process in told(done, "ping"):
                if process not in silent:
                    actions += self.life.said(process, Pong(steps=int(self.life.now), requests=requests))
        return actions


def test_engine_cores_and_api_servers_are_asked_and_workers_are_not() -> None:
    story = Watched(servers=2, ranks=2, workers=1).serve()
    actions = story.life.look_for_hangs() + story.until(PERIOD)
    assert told(actions, "ping") == [*story.servers, *story.cores]
    assert message_of(actions, "ping") == {"type": "ping"}


def test_a_silent_core_is_killed_with_its_workers_as_a_hang_and_its_rank_comes_back() -> None:
    story = Watched(ranks=2, workers=1).serve()
    core, worker = (process for process in story.all if process.rank == 0)
    story.life.look_for_hangs()
    actions = story.until(PERIOD + STALL, silent=(core,))
    assert killed(actions) == [core, worker]
    assert story.words() == [(1, "Restarting"), (1, "Serving")]
    reports = reported(story.life.exited(worker, exit=KILLED, out_of_memory=False))
    last = story.life.exited(core, exit=KILLED, out_of_memory=False)
    reports += reported(last)
    assert [(report["role"], report["class"], report["planned"]) for report in reports] == [
        ("worker", "Signal", True),
        ("engine-core", "Hang", False),
    ]
    assert reports[1]["message"] == "engine core of rank 0 has not answered for 120 s"
    assert (reports[1]["pid"], reports[1]["signal"]) == (101, 9)
    assert [process.incarnation for process in story.bring_back(last)] == [2, 2]


def test_the_only_rank_that_hangs_again_too_soon_ends_the_engine_with_that_cause() -> None:
    story = Watched().serve()
    story.life.look_for_hangs()
    story.until(PERIOD + STALL, silent=(story.cores[0],))
    (again,) = story.bring_back(story.life.exited(story.cores[0], exit=KILLED, out_of_memory=False))
    story.life.said(story.servers[0], ready(0, incarnation=2))
    story.life.look_for_hangs()
    story.until(2 * (PERIOD + STALL), silent=(again,))
    assert story.life.phase is Phase.STOPPING
    story.life.exited(again, exit=KILLED, out_of_memory=False)
    assert story.life.cause is not None
    assert (story.life.cause.kind, termination.exit_code(story.life.cause)) == (termination.HANG, 137)


@pytest.mark.parametrize("who", [0, 1, 2], ids=["API server", "core", "worker"])
def test_a_stopped_process_is_the_one_to_blame_and_not_the_one_that_waits_for_it(who: int) -> None:
    story = Watched(workers=1).serve()
    victim = story.all[who]
    story.life.look_for_hangs()
    story.life.clock(PERIOD - 1)
    story.life.stopped(victim, number=signal.SIGSTOP)
    story.life.look_for_hangs()
    silent = tuple(process for process in story.all if process.rank == victim.rank)
    actions = story.until(PERIOD - 1 + STALL, silent=silent)
    assert killed(actions) == list(silent)
    deaths = [report for process in silent for report in reported(story.life.exited(process, exit=KILLED, out_of_memory=False))]
    blamed = {report["message"] for report in deaths if not report["planned"]}
    assert blamed == {f"{victim} was stopped by SIGSTOP and not continued for 120 s"}


def test_one_that_is_continued_in_time_changes_nothing_and_its_rank_is_asked_anew() -> None:
    story = Watched(workers=1).serve()
    story.life.look_for_hangs()
    for turn in range(5):
        story.life.clock((turn + 1) * (STALL - 1))
        story.life.continued(story.workers[0])
        story.life.look_for_hangs()
        story.life.stopped(story.workers[0], number=signal.SIGSTOP)
        assert killed(story.life.look_for_hangs()) == []
    assert story.words() == [(1, "Serving")]


@pytest.mark.parametrize("phase", ["starting", "draining", "restarting"])
def test_silence_is_not_judged_while_it_has_another_deadline_but_a_lasting_stop_is(phase: str) -> None:
    story = Watched(ranks=2)
    story.life.startup_timeout_seconds = story.life.drain_timeout_seconds = story.life._deadline = 2000.0
    if phase == "starting":
        story.start()
        story.register()
    else:
        story.serve()
    victim = story.cores[0]
    if phase == "draining":
        story.life.asked_to_stop()
    if phase == "restarting":
        (victim,) = story.bring_back(story.exit(victim, KILLED))
    story.life.look_for_hangs()
    assert victim not in killed(story.until(900.0, silent=(victim,)))
    story.life.clock(900.0)
    story.life.stopped(victim, number=signal.SIGSTOP)
    story.life.look_for_hangs()
    assert victim not in killed(story.until(899.0 + STALL))
    assert victim in killed(story.until(900.0 + STALL))


def test_a_process_that_is_stopped_while_the_engine_stops_is_killed_at_its_deadline_and_no_failure() -> None:
    story = Watched().serve()
    story.life.asked_to_stop()
    story.life.asked_to_stop()
    (server,), (core,) = story.servers, story.cores
    story.life.stopped(core, number=signal.SIGSTOP)
    story.exit(server, CLEAN, bye=True)
    assert killed(story.until(20.0)) == [core]
    story.life.exited(core, exit=KILLED, out_of_memory=False)
    assert (story.life.phase, story.life.cause) == (Phase.ENDED, None)


def test_an_answer_that_has_arrived_with_the_deadline_counts() -> None:
    """The launcher wakes late, reads what is there, and only then judges."""
    story = Watched().serve()
    story.life.look_for_hangs()
    story.until(PERIOD, silent=tuple(story.all))
    story.life.clock(PERIOD + STALL)
    for process in story.all:
        story.life.said(process, messages.Pong())
    assert killed(story.life.look_for_hangs()) == []
