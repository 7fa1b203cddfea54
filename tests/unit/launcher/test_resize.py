"""What the launcher decides when ranks are added to an engine that serves, or taken from it, without any process."""

from __future__ import annotations

import math

import pytest

from engine_story import CLEAN, KILLED, Story, asked, killed, message_of, ready, reported, started, told
from enginehouse_engine.launcher import messages
from enginehouse_engine.launcher.actions import Send
from enginehouse_engine.launcher.phase import REAP_SECONDS, STOP_SECONDS, Phase
from enginehouse_engine.launcher.process import ENGINE_CORE, Process
from enginehouse_engine.launcher.termination import Cause, Exit

STARTUP_SECONDS = 100
DRAIN_SECONDS = 60
SERVING = [(1, "Serving")]


def known(story: Story, *ranks: tuple[int, int], length: int = 64) -> None:
    """Every API server says that these ranks serve; incarnations too."""
    fits = tuple(fit for rank, incarnation in ranks for fit in ready(rank, incarnation=incarnation, length=length).ranks)
    for server in story.servers:
        story.life.said(server, messages.Ready(ranks=fits, max_context_length=length))


def rank_of(story: Story, rank: int) -> list[Process]:
    return [process for unit in story.life.units for process in unit.processes if process.rank == rank]


def drained(story: Story, rank: int, incarnation: int = 1) -> list:  # type: ignore[type-arg]  # of whatever actions there are
    """All API servers say so; what the last one's word leads to."""
    actions = [story.life.said(server, messages.RankDrained(rank, incarnation)) for server in story.servers]
    assert all(asked(early) == [] for early in actions[:-1])
    return actions[-1]


def leave(story: Story, rank: int) -> None:
    """Its requests have ended, and its processes do what they are told."""
    drained(story, rank)
    for process in rank_of(story, rank):
        story.exit(process, CLEAN, bye=True)


def test_an_added_rank_is_told_of_and_started_and_serves_once_all_api_servers_know_it() -> None:
    story = Story(servers=2, workers=1).serve()
    actions = story.life.resized(2)
    assert told(actions, "ranks") == story.servers
    assert message_of(actions, "ranks")["ranks"][1] == {"rank": 1, "incarnation": 1, "state": "Starting"}
    assert [(process.role, process.rank, process.incarnation) for process in started(actions)] == [
        (ENGINE_CORE, 1, 1),
        ("worker", 1, 1),
    ]
    core, _ = story.bring_back(actions)
    assert "addresses" in story.life._unit_of(core).seen[core].told, "those that serve, at once"
    assert story.words() == [*SERVING, (1, "Starting")]
    story.life.said(story.servers[0], ready(0, 1))
    assert story.words()[1] == (1, "Starting")
    story.life.said(story.servers[1], ready(0, 1))
    assert (story.words(), story.life.deadline) == ([*SERVING, (1, "Serving")], math.inf)


def test_the_same_number_told_again_changes_nothing() -> None:
    story = Story(ranks=2).serve()
    assert story.life.resized(2) == []
    story.bring_back(story.life.resized(3))
    assert story.life.resized(3) == []


def test_a_rank_that_leaves_drains_then_stops_core_before_workers_then_is_gone() -> None:
    story = Story(servers=2, ranks=2, workers=1).serve()
    core, worker = rank_of(story, 1)
    actions = story.life.resized(1)
    assert asked(actions) == []
    assert message_of(actions, "ranks")["ranks"][1] == {"rank": 1, "incarnation": 1, "state": "Draining"}
    assert story.words() == [*SERVING, (1, "Draining")]
    assert asked(story.life.said(story.servers[1], messages.RankDrained(1, 1))) == []
    actions = story.life.said(story.servers[0], messages.RankDrained(1, 1))
    assert asked(actions) == [Send(core, {"type": "stop"})]
    assert [rank["rank"] for rank in message_of(actions, "ranks")["ranks"]] == [0], "told before the core is asked"
    assert actions[-1] == Send(core, {"type": "stop"})
    assert story.words() == [*SERVING, (1, "Draining")], "something of it is left"
    assert asked(story.exit(core, CLEAN, bye=True))[-1] == Send(worker, {"type": "stop"})
    story.exit(worker, CLEAN, bye=True)
    assert (story.words(), story.life.deadline, story.life.cause) == (SERVING, math.inf, None)


def test_the_highest_ranks_leave_and_one_that_returns_goes_on_with_its_incarnations() -> None:
    story = Story(ranks=3).serve()
    story.life.resized(1)
    assert story.words() == [*SERVING, (1, "Draining"), (1, "Draining")]
    leave(story, 2)
    leave(story, 1)
    assert story.words() == SERVING
    assert [process.incarnation for process in story.bring_back(story.life.resized(2))] == [2]
    known(story, (0, 1), (1, 2))
    assert story.words() == [*SERVING, (2, "Serving")]


def test_a_rank_that_is_wanted_again_while_it_drains_leaves_all_the_same_and_begins_anew_when_it_is_gone() -> None:
    story = Story(ranks=2, workers=1).serve()
    story.life.resized(1)
    assert asked(story.life.resized(2)) == []
    assert story.words()[1] == (1, "Draining")
    core, worker = rank_of(story, 1)
    drained(story, 1)
    assert started(story.exit(core, CLEAN, bye=True)) == []
    again = story.bring_back(story.exit(worker, CLEAN, bye=True))
    assert [process.incarnation for process in again] == [2, 2]
    assert story.words()[1] == (2, "Starting")


def test_a_drain_that_takes_too_long_is_cut_and_a_stop_that_takes_too_long_is_a_kill() -> None:
    story = Story(ranks=2, workers=1).serve()
    core, worker = rank_of(story, 1)
    story.life.resized(1)
    assert story.life.clock(DRAIN_SECONDS - 0.1) == []
    actions = story.life.clock(DRAIN_SECONDS)
    assert [rank["rank"] for rank in message_of(actions, "ranks")["ranks"]] == [0], "what is under way there fails now"
    assert asked(actions) == [Send(core, {"type": "stop"})]
    assert killed(story.life.clock(DRAIN_SECONDS + STOP_SECONDS)) == [core, worker]
    reports = reported(story.exit(core, KILLED)) + reported(story.exit(worker, KILLED))
    assert ([report["planned"] for report in reports], story.words(), story.life.cause) == ([True, True], SERVING, None)


@pytest.mark.parametrize("state", ["serving", "starting"])
def test_a_rank_that_outlives_its_kill_is_dead_of_that_until_it_is_gone(state: str) -> None:
    story = Story(ranks=2 if state == "serving" else 1, workers=1).serve()
    if state == "starting":
        story.bring_back(story.life.resized(2))
    core, worker = rank_of(story, 1)
    killed_at = DRAIN_SECONDS + STOP_SECONDS if state == "serving" else 0.0
    actions = story.life.resized(1)
    for now in (DRAIN_SECONDS, DRAIN_SECONDS + STOP_SECONDS) if state == "serving" else ():
        actions = story.life.clock(now)
    assert killed(actions) == [core, worker]
    story.exit(core, KILLED)
    assert story.life.clock(killed_at + REAP_SECONDS - 0.1) == []
    assert story.words()[1] == (1, "Draining")
    (report,) = reported(story.life.clock(killed_at + REAP_SECONDS))
    pid = story.life._unit_of(worker).seen[worker].pid
    assert (report["planned"], report["rank"], report["role"]) == (False, 1, "worker"), "of the core it was told how it ended"
    assert report["message"].endswith(f": the kernel has not let go of worker 0 of rank 1 (pid {pid})")
    assert (story.words()[1], story.life.deadline, story.life.cause) == ((1, "Dead"), math.inf, None)
    story.exit(worker, KILLED)
    assert story.words() == SERVING


def test_a_rank_whose_place_ray_does_not_take_back_is_dead_of_that() -> None:
    story = Story(ranks=2, ray=True, needs_places=True)
    places = {(0, 1): True, (1, 1): True}
    story.life.placed(places)
    story.serve()
    story.life.resized(1)
    drained(story, 1)
    story.exit(rank_of(story, 1)[0], CLEAN, bye=True)
    story.life.placed(places)
    story.life.clock(STOP_SECONDS)
    (report,) = reported(story.life.clock(STOP_SECONDS + REAP_SECONDS))
    left = "rank 1 has not left 60 s after SIGKILL to whoever was left of it: Ray has not taken its place back"
    assert report["message"] == left
    assert story.words()[1] == (1, "Dead")
    story.life.placed({(0, 1): True})
    assert story.words() == SERVING


@pytest.mark.parametrize("state", ["starting", "restarting", "dead"])
def test_a_rank_that_does_not_serve_leaves_at_once(state: str) -> None:
    story = Story(ranks=1 if state == "starting" else 2, workers=1).serve()
    if state == "starting":
        core, worker = story.bring_back(story.life.resized(2))
    else:
        core, worker = rank_of(story, 1)
    if state == "restarting":
        story.life.pipe_closed(core, bye=False)
    if state == "dead":
        story.life.asked_to_end_ranks((1,))
    actions = story.life.resized(1)
    assert killed(actions) == ([core, worker] if state == "starting" else [])
    assert started(story.exit(core, KILLED) + story.exit(worker, KILLED)) == []
    assert (story.words(), story.life.cause, story.life.phase) == (SERVING, None, Phase.SERVING)


def test_a_rank_that_dies_while_it_drains_is_reported_not_restarted_and_forgotten() -> None:
    story = Story(ranks=2, workers=1).serve()
    core, worker = rank_of(story, 1)
    story.life.resized(1)
    actions = story.life.pipe_closed(worker, bye=False)
    assert killed(actions) == [core, worker]
    assert [rank["rank"] for rank in message_of(actions, "ranks")["ranks"]] == [0]
    assert story.words()[1] == (1, "Dead")
    reports = [report for process in (core, worker) for report in reported(story.exit(process, KILLED))]
    assert [report["planned"] for report in reports] == [True, False]
    assert (story.words(), story.life.cause) == (SERVING, None)


def test_a_core_that_fails_when_it_is_asked_to_stop_is_reported_and_its_workers_are_told() -> None:
    story = Story(ranks=2, workers=1).serve()
    core, worker = rank_of(story, 1)
    story.life.resized(1)
    drained(story, 1)
    actions = story.exit(core, Exit(exit_code=1))
    assert [report["planned"] for report in reported(actions)] == [False]
    assert told(actions, "stop") == [worker]
    story.exit(worker, CLEAN, bye=True)
    assert (story.words(), story.life.cause) == (SERVING, None)


def test_nothing_that_serves_leaves_before_a_rank_that_stays_serves() -> None:
    story = Story(ranks=2).serve()
    (first,) = rank_of(story, 0)
    again = story.bring_back(story.exit(first, KILLED))
    story.life.resized(1)
    assert story.words() == [(2, "Restarting"), (1, "Serving")]
    assert again[0].incarnation == 2
    known(story, (0, 2), (1, 1))
    assert story.words() == [(2, "Serving"), (1, "Draining")]


def test_an_engine_whose_only_staying_rank_dies_beside_one_that_drains_ends_with_that_cause() -> None:
    story = Story(ranks=2).serve()
    (first,) = rank_of(story, 0)
    story.bring_back(story.exit(first, KILLED))
    known(story, (0, 2), (1, 1))
    story.life.resized(1)
    story.exit(Process(role=ENGINE_CORE, rank=0, index=0, incarnation=2), Exit(signal=11))
    assert story.life.phase is Phase.STOPPING
    assert story.life.cause is not None
    assert story.life.cause.exit.signal == 11


def test_an_added_rank_that_dies_or_takes_too_long_is_dead_and_the_others_serve_on() -> None:
    story = Story().serve()
    (core,) = story.bring_back(story.life.resized(2))
    reports = reported(story.exit(core, Exit(exit_code=1)))
    assert [report["planned"] for report in reports] == [False]
    assert (story.words(), story.life.phase) == ([*SERVING, (1, "Dead")], Phase.SERVING)
    (core,) = story.bring_back(story.life.resized(3))
    assert killed(story.life.clock(STARTUP_SECONDS)) == [core]
    (report,) = reported(story.exit(core, KILLED))
    assert (report["class"], report["planned"]) == ("StartupTimeout", False)
    assert story.words() == [*SERVING, (1, "Dead"), (1, "Dead")]
    story.life.resized(1)
    assert (story.words(), story.life.cause) == (SERVING, None), "nobody asks any more what they died of"


def test_an_api_server_that_dies_holds_up_neither_those_that_come_nor_those_that_leave() -> None:
    story = Story(servers=2, ranks=2).serve()
    story.bring_back(story.life.resized(3))
    story.life.said(story.servers[0], ready(0, 1, 2))
    story.exit(story.servers[1], KILLED)
    assert story.words()[2] == (1, "Serving")
    story.life.resized(2)
    core = rank_of(story, 2)[0]
    assert asked(story.life.said(story.servers[0], messages.RankDrained(2, 1))) == [Send(core, {"type": "stop"})]


def test_an_api_server_that_comes_back_in_a_drain_is_asked_too() -> None:
    story = Story(servers=2, ranks=2).serve()
    story.life.resized(1)
    (again,) = story.bring_back(story.exit(story.servers[1], KILLED))
    assert asked(story.life.said(story.servers[0], messages.RankDrained(1, 1))) == []
    assert told(story.life.said(again, messages.RankDrained(1, 1)), "stop") == rank_of(story, 1)


@pytest.mark.parametrize("drains", [False, True], ids=["a rank comes", "a rank drains"])
def test_asked_to_stop_in_a_resize_it_ends_in_order_and_starts_nothing(drains: bool) -> None:
    story = Story(ranks=2).serve()
    if drains:
        story.life.resized(1)
    else:
        (added,) = story.bring_back(story.life.resized(3))
    actions = story.life.asked_to_stop()
    assert told(actions, "drain") == story.servers
    assert killed(actions) == ([] if drains else [added])
    if not drains:
        assert started(story.exit(added, KILLED)) == []
    assert asked(story.life.resized(5)) == []
    actions = story.life.said(story.servers[0], messages.Drained())
    assert sorted(map(str, told(actions, "stop"))) == ["API server 0", "engine core of rank 0", "engine core of rank 1"]
    for process in told(actions, "stop"):
        story.exit(process, CLEAN, bye=True)
    assert (story.life.phase, story.life.cause) == (Phase.ENDED, None)


def test_while_the_engine_drains_ranks_take_requests_but_those_that_leave() -> None:
    story = Story(ranks=2).serve()
    story.life.resized(1)
    story.life.asked_to_stop()
    states = [rank["state"] for rank in story.life.units[0].seen[story.servers[0]].told["ranks"]["ranks"]]
    assert states == ["Serving", "Draining"]
    assert story.words() == [(1, "Draining"), (1, "Draining")]


def test_an_abort_of_a_rank_that_drains_ends_it_now_and_one_of_all_that_stay_ends_the_engine() -> None:
    story = Story(ranks=3).serve()
    story.life.resized(2)
    (core,) = rank_of(story, 2)
    assert killed(story.life.asked_to_end_ranks((2,))) == [core]
    story.exit(core, KILLED)
    assert story.words() == [(1, "Serving")] * 2
    story.life.asked_to_end_ranks((0, 1), cause=Cause("Signal", "worker 9 died", exit=KILLED))
    assert (story.life.phase, story.life.state()["state"]) == (Phase.STOPPING, "Failed")


def test_a_number_that_comes_before_the_model_is_what_is_started() -> None:
    story = Story(ranks=2, monitor="/run/monitor")
    story.life.monitor_stored()
    story.life.resized(1)
    assert [process.rank for process in started(story.life.model_found())] == [None, 0]
    story = Story(monitor="/run/monitor")
    story.life.monitor_stored()
    assert story.life.resized(3) == []
    assert [process.rank for process in started(story.life.model_found())] == [None, 0, 1, 2]


def test_a_rank_that_is_taken_back_while_the_engine_starts_is_killed_and_not_waited_for() -> None:
    story = Story(ranks=2)
    story.start()
    story.register()
    core = rank_of(story, 1)[0]
    assert killed(story.life.resized(1)) == [core]
    story.life.was_dying(core)
    story.exit(core, Exit(signal=11))
    assert story.life.phase is Phase.STARTING
    story.life.said(story.servers[0], ready(0))
    assert (story.life.phase, story.words()) == (Phase.SERVING, SERVING)


def test_a_smaller_added_rank_lowers_what_is_accepted_for_good_and_what_is_published_follows() -> None:
    story = Story(servers=2).serve()
    story.bring_back(story.life.resized(2))
    for server in story.servers:
        story.life.said(server, messages.Ready(ranks=(*ready(0).ranks, *ready(1, length=31).ranks), max_context_length=32))
    assert story.life.units[0].seen[story.servers[0]].told["ranks"]["maxContextLength"] == 32
    assert [rank["maxContextLength"] for rank in story.life.state()["ranks"]] == [64, 32]
    story.life.resized(1)
    leave(story, 1)
    assert [rank["maxContextLength"] for rank in story.life.state()["ranks"]] == [32], "no API server takes more any more"
    assert story.life.max_context_length() == 32


# Ranks that need a place (executor Ray)


def placed_story(*, ranks: int) -> Story:
    """All wait for a place, and the API server for all."""
    story = Story(ranks=ranks, needs_places=True)
    story.life.begin()
    story.life.model_found()
    story.life.started(story.servers[0], pid=99)
    story.life.registered(story.servers[0])
    story.life.said(story.servers[0], messages.Bound(endpoint="ipc://a"))
    return story


def place(story: Story, *ranks: int, pending: tuple[tuple[int, int], ...] = ()) -> None:
    """These have a place, and their processes have come."""
    units = [unit for unit in story.life.units if unit.processes[0].rank in ranks]
    story.life.placed({(unit.rank, unit.incarnation): True for unit in units} | dict.fromkeys(pending, False))
    for process in (process for unit in units for process in unit.processes if process not in unit.seen):
        story.life.started(process, pid=story.pid())
        story.life.registered(process)


def test_a_rank_without_a_place_is_pending_and_the_others_serve_without_it_for_as_long_as_it_takes() -> None:
    story = placed_story(ranks=2)
    assert story.words() == [(1, "Pending"), (1, "Pending")]
    place(story, 0, pending=((1, 1),))
    assert story.words() == [(1, "Starting"), (1, "Pending")]
    story.life.said(story.servers[0], ready(0))
    assert (story.life.phase, story.words(), story.life.deadline) == (Phase.SERVING, [*SERVING, (1, "Pending")], math.inf)
    story.life.clock(10 * STARTUP_SECONDS)
    place(story, 0, 1)
    assert (story.words()[1], story.life.deadline) == ((1, "Starting"), 11 * STARTUP_SECONDS)
    story.life.said(story.servers[0], ready(0, 1))
    assert story.words() == [*SERVING, (1, "Serving")]


def test_an_engine_for_which_there_is_no_place_at_all_is_not_ready_in_time_and_says_so() -> None:
    story = placed_story(ranks=1)
    story.life.clock(STARTUP_SECONDS)
    assert story.life.cause is not None
    assert "engine core of rank 0" in story.life.cause.message


def test_a_rank_is_gone_when_its_place_is_given_back_and_not_before() -> None:
    story = placed_story(ranks=2)
    place(story, 0, 1)
    story.life.said(story.servers[0], ready(0, 1))
    story.life.resized(1)
    leave(story, 1)
    assert story.words() == [*SERVING, (1, "Draining")]
    story.life.resized(2)
    assert story.words() == [*SERVING, (1, "Draining")]
    assert [(process.rank, process.incarnation) for process in started(story.life.placed({(0, 1): True}))] == [(1, 2)]
    assert story.words() == [*SERVING, (2, "Pending")]


def test_a_restart_waits_until_the_last_incarnation_has_given_its_place_back() -> None:
    story = placed_story(ranks=2)
    place(story, 0, 1)
    story.life.said(story.servers[0], ready(0, 1))
    assert started(story.exit(story.cores[1], KILLED)) == []
    assert [process.incarnation for process in started(story.life.placed({(0, 1): True}))] == [2]


def test_a_pending_rank_is_taken_back_without_a_trace_but_for_its_number() -> None:
    story = placed_story(ranks=1)
    place(story, 0)
    story.life.said(story.servers[0], ready(0))
    story.life.resized(2)
    story.life.placed({(0, 1): True, (1, 1): False})
    story.life.resized(1)
    assert story.words() == [*SERVING, (1, "Draining")]
    story.life.placed({(0, 1): True})
    assert story.words() == SERVING
    assert [process.incarnation for process in started(story.life.resized(2))] == [2]
