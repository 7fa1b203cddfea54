"""What the launcher decides for the engine as a whole, without any process."""

from __future__ import annotations

import pytest

from engine_story import CLEAN, KILLED, Story, asked, killed, message_of, ready, reported, started, told
from enginehouse_engine.launcher import messages, termination
from enginehouse_engine.launcher.actions import FetchModel, Send
from enginehouse_engine.launcher.phase import (
    DRAIN_MARGIN_SECONDS,
    SETTLE_SECONDS,
    STOP_AFTER_DEATH_SECONDS,
    STOP_SECONDS,
    Phase,
)
from enginehouse_engine.launcher.process import ENGINE_CORE, Process
from enginehouse_engine.launcher.termination import Cause, Exit


def test_nothing_starts_before_the_monitor_has_stored_the_row() -> None:
    life = Story(monitor="/run/monitor").life
    assert life.begin() == []
    assert life.monitor_stored() == [FetchModel()]
    assert life.monitor_stored() == []  # a monitor that was restarted says it again
    assert started(life.model_found()) == [process for unit in life.units for process in unit.processes]


def test_alone_the_model_is_looked_for_at_once() -> None:
    assert Story().life.begin() == [FetchModel()]


def test_addresses_are_published_when_all_api_servers_are_bound_and_to_late_cores() -> None:
    story = Story(servers=2, ranks=2)
    story.start()
    early, late = story.cores
    for process in (*story.servers, early):
        assert told(story.life.registered(process), "addresses") == []
    assert story.life.said(story.servers[1], messages.Bound(endpoint="ipc://b")) == []
    front_ends = [{"index": 0, "incarnation": 1, "endpoint": "ipc://a"}, {"index": 1, "incarnation": 1, "endpoint": "ipc://b"}]
    message = {"type": "addresses", "frontEnds": front_ends, "replicaUid": "uid"}
    assert story.life.said(story.servers[0], messages.Bound(endpoint="ipc://a")) == [Send(early, message)]
    assert story.life.registered(late) == [Send(late, message)]


def test_records_of_a_rank_reach_all_of_it_when_the_last_has_come_and_no_other_rank() -> None:
    story = Story(ranks=2, workers=2)
    story.start()
    story.register()
    rank = [process for process in story.all if process.rank == 1]
    for process in rank[:-1]:
        assert story.life.said(process, messages.Published(record={"queue": str(process)})) == []
    actions = story.life.said(rank[-1], messages.Published(record={"queue": str(rank[-1])}))
    assert told(actions, "peers") == rank
    records = [{"role": process.role, "index": process.index, "record": {"queue": str(process)}} for process in rank]
    message = {"type": "peers", "replicaUid": "uid", "rank": 1, "incarnation": 1, "records": records}
    assert [action.message for action in actions if isinstance(action, Send)] == [message] * 3


def test_api_servers_hear_of_every_rank_after_registration_and_on_every_change() -> None:
    story = Story(ranks=2)
    story.start()
    rows = [{"rank": rank, "incarnation": 1, "state": "Starting"} for rank in (0, 1)]
    assert story.register() == [Send(story.servers[0], {"type": "ranks", "ranks": rows})]
    story.life.said(story.servers[0], messages.Bound(endpoint="ipc://a"))
    rows = [{**row, "state": "Serving"} for row in rows]
    actions = story.life.said(story.servers[0], ready(0, 1))
    assert actions == [Send(story.servers[0], {"type": "ranks", "ranks": rows, "maxContextLength": 64})]


def test_every_api_server_hears_of_the_lowest_context_length_that_any_ever_accepted() -> None:
    story = Story(servers=2, ranks=2)
    story.start()
    story.register()
    for server, length in zip(story.servers, (32, 64), strict=True):
        message = message_of(story.life.said(server, ready(0, 1, length=length)), "ranks")
        assert message["maxContextLength"] == 32
    (successor,) = story.bring_back(story.exit(story.servers[0], KILLED))
    assert story.life.units[0].seen[successor].told["ranks"]["maxContextLength"] == 32


def test_it_serves_when_every_api_server_knows_every_rank() -> None:
    story = Story(servers=2, ranks=2)
    story.start()
    story.register()
    story.life.said(story.servers[0], ready(0, 1))
    story.life.said(story.servers[1], ready(0))
    assert story.life.phase is Phase.STARTING
    story.life.said(story.servers[1], ready(0, 1, length=32))
    assert story.life.phase is Phase.SERVING
    assert story.life.max_context_length() == 32
    assert story.life.state() == {
        "type": "state",
        "state": "Serving",
        "ranks": [
            {"rank": 0, "incarnation": 1, "state": "Serving", "maxContextLength": 32, "kvBlocks": 5},
            {"rank": 1, "incarnation": 1, "state": "Serving", "maxContextLength": 33, "kvBlocks": 5},
        ],
        "apiServers": [{"index": index, "incarnation": 1, "state": "Serving"} for index in (0, 1)],
    }


@pytest.mark.parametrize(
    ("progress", "missing"),
    [
        ("nothing", "the monitor at /run/monitor to store this pod's row"),
        ("stored", "the model's download"),
        ("started", "API server 0 (pid 100, not registered); engine core of rank 0 (pid 101, not registered)"),
        ("registered", "API server 0 (pid 100, stage registered); engine core of rank 0 (pid 101, stage registered)"),
        ("stage", "API server 0 (pid 100, stage registered); engine core of rank 0 (pid 101, stage profile)"),
    ],
)
def test_a_missed_start_names_who_is_missing_and_in_which_stage(progress: str, missing: str) -> None:
    story = Story(monitor="/run/monitor")
    life = story.life
    if progress != "nothing":
        life.monitor_stored()
    if progress not in ("nothing", "stored"):
        story.start()
    if progress in ("registered", "stage"):
        story.register()
    if progress == "stage":
        life.said(story.cores[0], messages.Stage(stage="profile"))
    assert life.clock(99.9) == []
    assert killed(life.clock(100.0)) == (list(story.all) if "pid" in missing else [])
    assert life.cause is not None
    assert (life.cause.kind, termination.exit_code(life.cause)) == (termination.STARTUP_TIMEOUT, 1)
    assert life.cause.message == f"not ready after 100 s, waiting for: {missing}"


def test_a_rank_that_no_server_knows_yet_is_missing_although_the_servers_are_ready() -> None:
    story = Story(ranks=2)
    story.start()
    story.register()
    story.life.said(story.servers[0], ready(0))
    story.life.clock(100.0)
    assert story.life.cause is not None
    assert story.life.cause.message.endswith("waiting for: engine core of rank 1 (pid 102, stage registered)")


def test_an_api_server_that_does_not_meet_a_rank_is_named() -> None:
    story = Story(servers=2, ranks=2)
    story.start()
    story.register()
    story.life.said(story.cores[1], messages.Stage(stage="handshake"))
    for server, ranks in zip(story.servers, ((0, 1), (0,)), strict=True):
        story.life.said(server, ready(*ranks))
    story.life.clock(100.0)
    assert story.life.cause is not None
    assert story.life.cause.message.endswith("engine core of rank 1 (pid 103, stage handshake); API server 1 to meet it")


def test_an_orderly_end_drains_then_stops_and_has_no_cause() -> None:
    story = Story().serve()
    (server,), (core,) = story.servers, story.cores
    assert asked(story.life.asked_to_stop()) == [Send(server, {"type": "drain", "timeoutSeconds": 60, "settleSeconds": 0})]
    assert (story.life.phase, story.life.deadline) == (Phase.DRAINING, 60 + DRAIN_MARGIN_SECONDS)
    assert told(story.life.said(server, messages.Drained()), "stop") == [server, core]
    reports = reported(story.exit(server, CLEAN, bye=True) + story.exit(core, CLEAN, bye=True))
    assert [report["planned"] for report in reports] == [True, True]
    assert story.life.phase is Phase.ENDED
    assert (story.life.cause, termination.exit_code(story.life.cause)) == (None, 0)
    assert story.life.state()["state"] == "Ended"


def test_in_a_pod_requests_are_taken_while_endpoints_settle_and_the_drain_is_as_much_longer() -> None:
    story = Story(monitor="/run/m").serve()
    message = {"type": "drain", "timeoutSeconds": 60 + SETTLE_SECONDS, "settleSeconds": SETTLE_SECONDS}
    assert asked(story.life.asked_to_stop()) == [Send(story.servers[0], message)]
    assert story.life.deadline == 60 + SETTLE_SECONDS + DRAIN_MARGIN_SECONDS


@pytest.mark.parametrize("first", ["the monitor", "a signal"])
def test_a_replica_that_ends_drains_once_whoever_says_so_and_however_often(first: str) -> None:
    """Its object and its pod are deleted by one and the same command: neither is a second request, which would cut."""
    story = Story().serve()
    begin, then = [story.life.replica_ends, story.life.asked_to_stop][:: 1 if first == "the monitor" else -1]
    assert asked(begin()) == [Send(story.servers[0], {"type": "drain", "timeoutSeconds": 60, "settleSeconds": 0})]
    assert (then(), story.life.replica_ends()) == ([], [])
    assert story.life.phase is Phase.DRAINING
    assert told(story.life.asked_to_stop(), "stop") == story.all, "a person's second signal cuts"


def test_a_replica_that_ends_while_it_starts_has_nothing_to_drain() -> None:
    story = Story()
    story.start()
    assert killed(story.life.replica_ends()) == story.all
    for process in story.all:
        story.exit(process, KILLED)
    assert (story.life.phase, story.life.cause) == (Phase.ENDED, None)


def test_a_drain_that_does_not_end_is_ended_and_a_stop_that_is_not_obeyed_kills() -> None:
    story = Story().serve()
    story.life.asked_to_stop()
    actions = story.life.clock(60 + DRAIN_MARGIN_SECONDS)
    assert told(actions, "stop") == list(story.all)
    assert killed(story.life.clock(60 + DRAIN_MARGIN_SECONDS + STOP_SECONDS)) == list(story.all)
    for process in story.all:
        story.exit(process, KILLED)
    assert (story.life.phase, story.life.cause) == (Phase.ENDED, None)


def test_a_second_signal_cuts_the_drain_and_a_third_kills() -> None:
    story = Story().serve()
    story.life.asked_to_stop()
    assert told(story.life.asked_to_stop(), "stop") == list(story.all)
    assert killed(story.life.asked_to_stop()) == list(story.all)


def test_a_signal_while_starting_kills_at_once_and_starts_nothing_more() -> None:
    story = Story()
    story.life.begin()
    story.life.model_found()
    assert story.life.started(story.all[0], pid=100) == []
    assert killed(story.life.asked_to_stop()) == [story.all[0]]
    assert killed(story.life.started(story.all[1], pid=101)) == [story.all[1]]
    for process in story.all:
        story.life.exited(process, exit=KILLED, out_of_memory=False)
    assert (story.life.phase, story.life.cause) == (Phase.ENDED, None)


@pytest.mark.parametrize("bye", [False, True])
@pytest.mark.parametrize("exit", [CLEAN, KILLED, Exit(exit_code=3)])
def test_an_exit_that_nobody_asked_for_is_a_death_whatever_its_code(exit: Exit, bye: bool) -> None:
    story = Story().serve()
    story.life.asked_to_stop()  # from here on nothing is brought back
    core, server = story.cores[0], story.servers[0]
    first = story.life.pipe_closed(core, bye=bye)
    assert story.life.state()["state"] == "Failed", "told before the kernel has released the memory"
    assert told(first, "stop") == [server]
    assert killed(first) == [core], "it may live on without its pipe, and nobody would see its death"
    assert story.life.deadline == STOP_AFTER_DEATH_SECONDS
    (report,) = reported(story.life.exited(core, exit=exit, out_of_memory=False))
    assert report["planned"] is False
    story.exit(server, CLEAN, bye=True)
    assert story.life.phase is Phase.ENDED
    assert story.life.cause is not None
    assert story.life.cause.process == core
    assert termination.exit_code(story.life.cause) == (137 if exit.signal else 1)


def test_the_first_death_is_the_cause_although_another_is_reaped_first() -> None:
    story = Story()
    story.start()
    story.register()
    story.life.pipe_closed(story.cores[0], bye=False)
    story.life.exited(story.servers[0], exit=Exit(exit_code=4), out_of_memory=False)
    story.life.exited(story.cores[0], exit=Exit(signal=11), out_of_memory=False)
    assert story.life.cause is not None
    assert story.life.cause.process == story.cores[0]
    assert termination.exit_code(story.life.cause) == 139


def test_a_crash_while_stopping_is_a_failure_all_the_same() -> None:
    story = Story().serve()
    story.life.asked_to_stop()
    story.life.asked_to_stop()
    story.exit(story.cores[0], Exit(signal=11))
    story.exit(story.servers[0], CLEAN, bye=True)
    assert termination.exit_code(story.life.cause) == 139


def test_what_a_process_said_before_it_died_is_the_cause() -> None:
    story = Story()
    story.start()
    story.register()
    story.life.said(story.cores[0], messages.Failed(cause="ContextTooSmall", message="12 tokens fit, 64 are wanted"))
    story.exit(story.cores[0], Exit(exit_code=78))
    assert story.life.cause is not None
    assert story.life.cause.message == "engine core of rank 0: 12 tokens fit, 64 are wanted"
    assert termination.exit_code(story.life.cause) == 78


def test_a_process_that_dies_before_it_registered_is_a_death_that_the_monitor_is_told_of() -> None:
    story = Story()
    story.start()
    actions = story.life.exited(story.cores[0], exit=Exit(exit_code=1), out_of_memory=False)
    assert [report["planned"] for report in reported(actions)] == [False]
    assert killed(actions) == [story.servers[0]]
    assert termination.exit_code(story.life.cause) == 1


def test_a_refusal_before_anything_runs_ends_at_once() -> None:
    story = Story()
    story.life.begin()
    cause = Cause(termination.MODEL_NOT_FOUND, "no such file")
    assert story.life.refused(cause) == []
    assert (story.life.phase, story.life.cause, termination.exit_code(cause)) == (Phase.ENDED, cause, 78)


def test_only_the_started_process_registers_and_only_once() -> None:
    story = Story()
    story.start()
    core = story.cores[0]
    assert "has pid 101, the message came from pid 5" in story.refusal(core, pid=5)
    assert story.refusal(core, pid=101) == ""
    story.life.registered(core)
    assert "is registered already, with pid 101" in story.refusal(core, pid=101)
    stale = Process(role=ENGINE_CORE, rank=0, index=0, incarnation=7)
    assert "has not started engine core of rank 0 (incarnation 7)" in story.refusal(stale, pid=101)
