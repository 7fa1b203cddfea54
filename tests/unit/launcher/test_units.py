"""What the launcher decides when a rank or an API server dies while the others serve, without any process."""

from __future__ import annotations

import pytest

from engine_story import CLEAN, KILLED, Story, asked, killed, message_of, ready, reported, started, told
from enginehouse_engine.launcher import messages, termination
from enginehouse_engine.launcher.actions import Action, Kill
from enginehouse_engine.launcher.phase import REAP_SECONDS, STOP_SECONDS, Phase
from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.termination import Exit
from enginehouse_engine.launcher.unit import RESTART_PAUSE_SECONDS

STARTUP_SECONDS = 100


@pytest.mark.parametrize("victim", [0, 1, 2], ids=["core", "worker 0", "worker 1"])
def test_a_rank_goes_down_as_one_and_comes_back_while_the_other_serves(victim: int) -> None:
    story = Story(ranks=2, workers=2).serve()
    rank = [process for process in story.all if process.rank == 0]
    actions = story.life.pipe_closed(rank[victim], bye=False)
    assert killed(actions) == rank
    assert story.words() == [(1, "Restarting"), (1, "Serving")]
    assert story.life.state()["state"] == "Serving"
    assert told(actions, "ranks") == story.servers, "API servers hear of it before anything is killed"
    reaped = [story.life.exited(process, exit=KILLED, out_of_memory=False) for process in rank]
    assert [started(actions) for actions in reaped[:2]] == [[], []], "nothing starts before the last of it has let go of its memory"
    again = story.bring_back(reaped[2])
    assert [(process.role, process.index, process.incarnation) for process in again] == [
        ("engine-core", 0, 2),
        ("worker", 0, 2),
        ("worker", 1, 2),
    ]
    story.life.said(story.servers[0], ready(1))
    assert story.words() == [(2, "Restarting"), (1, "Serving")]
    both = messages.Ready(ranks=(*ready(0, incarnation=2).ranks, *ready(1).ranks), max_context_length=64)
    story.life.said(story.servers[0], both)
    assert story.words() == [(2, "Serving"), (1, "Serving")]
    assert story.life.cause is None, "it was made good"


def test_only_the_death_is_reported_as_one() -> None:
    story = Story(ranks=2, workers=1).serve()
    core, worker = (process for process in story.all if process.rank == 0)
    actions = story.life.pipe_closed(worker, bye=False)
    reports = reported(story.life.exited(core, exit=KILLED, out_of_memory=False))
    reports += reported(story.life.exited(worker, exit=Exit(signal=11), out_of_memory=False))
    assert killed(actions) == [core, worker]
    assert [(report["role"], report["index"], report["planned"]) for report in reports] == [
        ("engine-core", 0, True),
        ("worker", 0, False),
    ]


def test_a_death_that_began_before_the_kill_is_no_planned_one_and_a_signal_is_the_cause() -> None:
    """A worker with much memory is killed; its peer breaks because of it and is seen to die first."""
    story = Story(ranks=2, workers=2).serve()
    core, large, peer = (process for process in story.all if process.rank == 0)
    story.life.said(peer, messages.Failed(cause="Exception", message="connection reset by peer"))
    story.life.pipe_closed(peer, bye=False)
    story.life.was_dying(large)
    reports = reported(story.life.exited(peer, exit=Exit(exit_code=1), out_of_memory=False))
    reports += reported(story.life.exited(core, exit=KILLED, out_of_memory=False))
    reports += reported(story.life.exited(large, exit=KILLED, out_of_memory=True))
    assert [report["planned"] for report in reports] == [False, True, False]
    assert story.life.cause is not None
    assert (story.life.cause.process, story.life.cause.kind) == (large, termination.OUT_OF_MEMORY)


def test_an_api_server_comes_back_with_a_fresh_endpoint_and_cores_let_the_old_one_go_at_once() -> None:
    story = Story(servers=2).serve()
    (first, second), (core,) = story.servers, story.cores
    actions = story.life.pipe_closed(first, bye=False)
    remaining = {"index": 1, "incarnation": 1, "endpoint": "ipc://1"}
    assert (told(actions, "addresses"), message_of(actions, "addresses")["frontEnds"]) == ([core], [remaining])
    (again,) = story.bring_back(story.life.exited(first, exit=KILLED, out_of_memory=False))
    assert (again.role, again.index, again.incarnation) == ("api-server", 0, 2)
    front_ends = message_of(story.life.said(again, messages.Bound(endpoint="ipc://new")), "addresses")["frontEnds"]
    assert front_ends == [{"index": 0, "incarnation": 2, "endpoint": "ipc://new"}, remaining]
    assert story.life.deadline == STARTUP_SECONDS
    story.life.said(again, ready(0))
    assert story.life.deadline == float("inf")
    assert second not in killed(actions)


def test_an_engine_of_one_rank_and_one_api_server_survives_either_death_and_both_at_once() -> None:
    story = Story().serve()
    actions = story.life.pipe_closed(story.cores[0], bye=False) + story.life.pipe_closed(story.servers[0], bye=False)
    assert story.life.phase is Phase.SERVING
    again = []
    for process in killed(actions):
        again += story.bring_back(story.life.exited(process, exit=KILLED, out_of_memory=False))
    core, server = again
    story.life.said(server, messages.Bound(endpoint="ipc://new"))
    assert story.words() == [(2, "Restarting")]
    story.life.said(server, ready(0, incarnation=2))
    assert story.words() == [(2, "Serving")]
    assert (story.life.cause, story.life.deadline, core.incarnation) == (None, float("inf"), 2)


def bring_rank_back(story: Story, process: Process, *, incarnation: int) -> Process:
    """Rank 0 dies, is started again and serves; its new core."""
    actions = story.exit(process, KILLED)
    (core,) = story.bring_back(actions)
    others = [fit for rank in story.cores[1:] for fit in ready(rank.rank or 0).ranks]
    story.life.said(story.servers[0], messages.Ready((*ready(0, incarnation=incarnation).ranks, *others), max_context_length=64))
    assert story.words()[0] == (incarnation, "Serving")
    return core


def test_a_rank_that_dies_again_too_soon_stays_dead_and_the_others_serve_on() -> None:
    story = Story(ranks=2).serve()
    again = bring_rank_back(story, story.cores[0], incarnation=2)
    story.life.clock(RESTART_PAUSE_SECONDS - 1)
    assert started(story.exit(again, Exit(signal=11))) == []
    assert story.words() == [(2, "Dead"), (1, "Serving")]
    assert (story.life.phase, story.life.state()["state"], story.life.deadline) == (Phase.SERVING, "Serving", float("inf"))
    assert story.life.cause is not None
    assert (story.life.cause.process, termination.exit_code(story.life.cause)) == (again, 139)


def test_the_row_never_shows_more_context_than_the_api_servers_accept() -> None:
    story = Story(ranks=2).serve()  # rank 0 fits 64 tokens, rank 1 one more

    def lengths() -> list[int]:
        return [rank["maxContextLength"] for rank in story.life.state()["ranks"]]

    (again,) = story.bring_back(story.exit(story.cores[0], KILLED))
    assert (lengths(), story.words()[0]) == ([64, 65], (2, "Restarting"))
    larger = messages.Ready((*ready(0, incarnation=2, length=80).ranks, *ready(1).ranks), max_context_length=64)
    story.life.said(story.servers[0], larger)
    assert (lengths(), story.words()[0]) == ([64, 65], (2, "Serving"))
    story.exit(again, KILLED)
    assert (lengths(), story.words()[0]) == ([64, 65], (2, "Dead"))


def test_a_rank_that_dies_again_after_ten_minutes_comes_back_again() -> None:
    story = Story().serve()
    again = bring_rank_back(story, story.cores[0], incarnation=2)
    story.life.clock(RESTART_PAUSE_SECONDS)
    assert bring_rank_back(story, again, incarnation=3).incarnation == 3


def test_a_restart_that_takes_too_long_ends_an_engine_without_another_rank() -> None:
    story = Story().serve()
    story.bring_back(story.exit(story.cores[0], Exit(signal=11)))
    story.life.clock(2 * RESTART_PAUSE_SECONDS)  # however late: it has not served
    assert story.life.phase is Phase.STOPPING, "its deadline is over, and it was the only one"


def test_death_during_a_restart_ends_an_engine_that_has_no_other_rank_with_the_first_cause() -> None:
    story = Story().serve()
    (again,) = story.bring_back(story.exit(story.cores[0], Exit(signal=11)))
    actions = story.exit(again, Exit(exit_code=1))
    assert (told(actions, "stop"), started(actions)) == (story.servers, [])
    assert story.life.state()["state"] == "Failed"
    story.exit(story.servers[0], CLEAN, bye=True)
    assert story.life.phase is Phase.ENDED
    assert story.life.cause is not None
    assert (story.life.cause.process, termination.exit_code(story.life.cause)) == (story.cores[0], 139)


def test_a_restart_that_takes_too_long_is_killed_and_reported_with_its_stage() -> None:
    story = Story(ranks=2, workers=1).serve()
    core, worker = (process for process in story.all if process.rank == 0)
    actions = story.life.pipe_closed(core, bye=False)
    story.life.exited(core, exit=KILLED, out_of_memory=False)
    again = story.bring_back(story.life.exited(worker, exit=KILLED, out_of_memory=False))
    story.life.said(again[1], messages.Stage(stage="load"))
    actions = story.life.clock(story.life.deadline)
    assert killed(actions) == again
    assert story.words() == [(2, "Dead"), (1, "Serving")]
    reports = reported([action for process in again for action in story.exit(process, KILLED)])
    assert [(report["class"], report["planned"]) for report in reports] == [("StartupTimeout", False), ("Signal", True)]
    assert reports[0]["message"] == (
        "not ready after 100 s, waiting for: engine core of rank 0 (pid 105, stage registered);"
        " worker 0 of rank 0 (pid 106, stage load)"
    )


def test_a_process_that_the_kernel_does_not_let_go_is_named_and_holds_only_its_own_rank() -> None:
    story = Story(ranks=2).serve()
    story.life.pipe_closed(story.cores[0], bye=False)
    story.life.clock(story.life.deadline)
    assert story.words() == [(1, "Dead"), (1, "Serving")]
    story.life.asked_to_stop()
    story.life.asked_to_stop()
    story.exit(story.servers[0], CLEAN, bye=True)
    story.exit(story.cores[1], CLEAN, bye=True)
    assert story.life.phase is Phase.STOPPING
    story.life.clock(story.life.deadline)
    story.life.clock(story.life.deadline)
    assert (story.life.phase, story.life.now) == (Phase.ENDED, STARTUP_SECONDS + STOP_SECONDS + REAP_SECONDS)
    assert story.life.cause is not None
    assert story.life.cause.message == "60 s after SIGKILL the kernel has not let go of engine core of rank 0 (pid 101)"


@pytest.mark.parametrize("survivors", ["rank", "API server"])
def test_a_death_while_draining_is_not_made_good_and_the_others_finish(survivors: str) -> None:
    story = Story(servers=2, ranks=2).serve()
    story.life.asked_to_stop()
    victim = story.cores[0] if survivors == "rank" else story.servers[0]
    actions = story.exit(victim, KILLED)
    assert (started(actions), told(actions, "stop")) == ([], [])
    assert story.life.phase is Phase.DRAINING
    for server in story.servers:
        if server is not victim:
            actions = story.life.said(server, messages.Drained())
    left = [process for process in story.all if process is not victim]
    assert told(actions, "stop") == left
    for process in left:
        story.exit(process, CLEAN, bye=True)
    assert (story.life.phase, termination.exit_code(story.life.cause)) == (Phase.ENDED, 137)


def test_a_stop_during_a_restart_starts_nothing_and_does_not_wait_for_it() -> None:
    story = Story(ranks=2, workers=1).serve()
    rank = [process for process in story.all if process.rank == 0]
    story.life.pipe_closed(rank[0], bye=False)
    actions = asked(story.life.asked_to_stop())
    assert told(actions, "drain") == story.servers
    last = [story.life.exited(process, exit=KILLED, out_of_memory=False) for process in rank]
    assert [started(actions) for actions in last] == [[], []]
    assert story.life.cause is None, "it was coming back, and the end was asked for"
    again = Story(ranks=2).serve()
    (core,) = again.bring_back(again.exit(again.cores[0], KILLED))
    assert killed(again.life.asked_to_stop()) == [core], "it imports or loads: it would not listen"


def test_workers_are_stopped_when_their_core_has_exited_each_rank_for_itself() -> None:
    story = Story(ranks=2, workers=2).serve()
    story.life.asked_to_stop()
    actions = story.life.asked_to_stop()
    assert told(actions, "stop") == [*story.servers, *story.cores]
    first, second = story.cores
    assert told(story.exit(second, CLEAN, bye=True), "stop") == [worker for worker in story.workers if worker.rank == 1]
    assert told(story.exit(first, CLEAN, bye=True), "stop") == [worker for worker in story.workers if worker.rank == 0]
    for process in (*story.servers, *story.workers):
        story.exit(process, CLEAN, bye=True)
    assert (story.life.phase, story.life.cause) == (Phase.ENDED, None)


def test_the_monitor_can_end_one_rank_which_is_no_death_and_the_engine_with_the_last() -> None:
    story = Story(ranks=3).serve()
    actions = story.life.asked_to_end_ranks((1, 7))
    assert killed(actions) == [story.cores[1]]
    assert story.words() == [(1, "Serving"), (1, "Dead"), (1, "Serving")]
    (report,) = reported(story.exit(story.cores[1], KILLED))
    assert report["planned"] is True
    assert story.life.asked_to_end_ranks((1,)) == [], "said again after a restart of the monitor"
    assert asked(story.life.asked_to_end_ranks(())) == []
    assert told(story.life.asked_to_end_ranks((0, 2)), "stop") == [story.servers[0], story.cores[0], story.cores[2]]
    for process in (story.servers[0], story.cores[0], story.cores[2]):
        story.exit(process, CLEAN, bye=True)
    assert (story.life.phase, story.life.cause, story.life.state()["state"]) == (Phase.ENDED, None, "Ended")


ELSEWHERE = termination.cause_told(
    messages.Death(
        kind="Signal", message="worker 3 of rank 1 was killed by SIGSEGV", role="worker", rank=1, incarnation=1, signal=11
    )
)


def test_a_rank_that_died_elsewhere_goes_down_here_and_the_others_go_on() -> None:
    story = Story(ranks=2).serve()
    actions = story.life.asked_to_end_ranks((1,), cause=ELSEWHERE)
    assert killed(actions) == [story.cores[1]]
    assert story.words() == [(1, "Serving"), (1, "Dead")]
    (report,) = reported(story.exit(story.cores[1], KILLED))
    assert report["planned"] is True, "it is the failure of the pod where it happened"
    assert story.life.phase is Phase.SERVING
    assert story.life.asked_to_end_ranks((1,), cause=ELSEWHERE) == [], "said again after a restart of the monitor"


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.SERVING, Phase.DRAINING])
def test_an_engine_whose_last_rank_died_elsewhere_ends_with_that_cause(phase: Phase) -> None:
    story = Story()
    if phase is Phase.STARTING:
        story.start()
    else:
        story.serve()
    if phase is Phase.DRAINING:
        story.life.asked_to_stop()
    assert story.life.phase is phase
    story.life.asked_to_end_ranks((0,), cause=ELSEWHERE)
    assert story.life.state()["state"] == "Failed"
    assert reported(story.exit(story.cores[0], KILLED) + story.exit(story.servers[0], CLEAN, bye=True))[0]["planned"] is True
    assert (story.life.phase, story.life.cause) == (Phase.ENDED, ELSEWHERE)
    assert termination.exit_code(story.life.cause) == 139


def test_a_process_that_cannot_be_started_again_is_a_death_of_its_unit_only() -> None:
    story = Story(ranks=2).serve()
    actions = story.exit(story.cores[0], KILLED)
    (core,) = started(actions)
    actions = story.life.not_started(core, reason="Cannot allocate memory")
    assert started(actions) == []
    assert story.words() == [(2, "Dead"), (1, "Serving")]
    (report,) = reported(actions)
    assert (report["rank"], report["incarnation"], report["planned"]) == (0, 2, False), "the operator waits for a dead rank's cause"


def test_a_death_before_the_registration_is_reported_like_any_other() -> None:
    story = Story(ranks=2).serve()
    (core,) = started(story.exit(story.cores[0], KILLED))
    story.life.started(core, pid=200)
    (report,) = reported(story.life.exited(core, exit=KILLED, out_of_memory=False))
    assert (report["rank"], report["incarnation"], report["pid"], report["planned"]) == (0, 2, 200, False)


def test_a_process_that_cannot_be_started_at_first_ends_the_engine_and_says_why() -> None:
    story = Story()
    story.life.begin()
    first, second = started(story.life.model_found())
    story.life.started(first, pid=100)
    assert killed(story.life.not_started(second, reason="Cannot allocate memory")) == [first]
    story.life.exited(first, exit=KILLED, out_of_memory=False)
    assert story.life.phase is Phase.ENDED
    assert story.life.cause is not None
    assert story.life.cause.message == "engine core of rank 0 cannot be started: Cannot allocate memory"


def test_records_of_an_incarnation_that_is_over_reach_nobody() -> None:
    story = Story(ranks=1, workers=1).serve()
    core, worker = story.cores[0], story.workers[0]
    for process in (core, worker):
        story.life.said(process, messages.Published(record={"queue": 1}))
    story.life.pipe_closed(worker, bye=False)
    story.life.exited(worker, exit=KILLED, out_of_memory=False)
    again = story.bring_back(story.life.exited(core, exit=KILLED, out_of_memory=False))
    assert told(story.life.said(again[0], messages.Published(record={"queue": 2})), "peers") == []
    actions = story.life.said(again[1], messages.Published(record={"queue": 3}))
    message = message_of(actions, "peers")
    assert (told(actions, "peers"), message["incarnation"]) == (again, 2)
    assert [record["record"] for record in message["records"]] == [{"queue": 2}, {"queue": 3}]


def test_a_process_of_the_last_incarnation_cannot_register_any_more() -> None:
    story = Story(ranks=2).serve()
    (again,) = story.bring_back(story.exit(story.cores[0], KILLED))
    assert "has not started engine core of rank 0 (incarnation 1), or it is over" in story.refusal(story.cores[0], pid=101)
    assert "is registered already" in story.refusal(again, pid=104)


def test_a_process_that_was_reaped_before_its_registration_was_read_is_not_registered_any_more() -> None:
    """It died with its message in the socket: nobody would ever give its descriptors back, or tell the monitor that it is gone."""
    story = Story(workers=2).serve()
    story.life.pipe_closed(story.cores[0], bye=False)
    actions = [
        action
        for process in (story.cores[0], *story.workers)
        for action in story.life.exited(process, exit=KILLED, out_of_memory=False)
    ]
    (core, worker, other) = started(actions)
    for number, process in enumerate((core, worker, other), start=200):
        story.life.started(process, pid=number)
    story.life.exited(worker, exit=KILLED, out_of_memory=False)
    assert "is over" in story.refusal(worker, pid=201)


def test_a_rank_serves_again_when_the_only_api_server_that_did_not_know_it_dies() -> None:
    story = Story(servers=2).serve()
    first, second = story.servers
    story.bring_back(story.exit(story.cores[0], KILLED))
    story.life.said(first, ready(0, incarnation=2))
    assert story.words() == [(2, "Restarting")]
    actions = story.life.pipe_closed(second, bye=False)
    assert story.words() == [(2, "Serving")]
    assert [rank["state"] for rank in message_of(actions, "ranks")["ranks"]] == ["Serving"]


def test_a_worker_that_said_why_it_fails_is_blamed_and_not_the_core_that_ends_before_it() -> None:
    """The kernel takes a worker's memory back before it closes its pipe; the core beside it has little."""
    story = Story(ranks=2, workers=1).serve()
    core, worker = (process for process in story.all if process.rank == 0)
    story.life.said(worker, messages.Failed(cause="OutOfMemory", message="cannot allocate"))
    story.life.said(core, messages.Failed(cause="Exception", message="worker 0 failed"))
    story.life.pipe_closed(core, bye=False)
    story.life.was_dying(worker)
    story.life.exited(core, exit=Exit(exit_code=1), out_of_memory=False)
    story.life.exited(worker, exit=Exit(exit_code=1), out_of_memory=False)
    assert story.life.cause is not None
    assert (story.life.cause.process, story.life.cause.kind) == (worker, "OutOfMemory")


def test_a_process_that_exits_without_a_word_is_blamed_and_not_the_one_that_says_it_lost_it() -> None:
    story = Story(ranks=2, workers=2).serve()
    _, silent, other = (process for process in story.all if process.rank == 0)
    story.life.pipe_closed(silent, bye=False)
    story.life.said(other, messages.Failed(cause="Exception", message="lost another worker"))
    story.life.was_dying(other)
    story.life.exited(silent, exit=Exit(exit_code=3), out_of_memory=False)
    story.life.exited(other, exit=Exit(exit_code=1), out_of_memory=False)
    assert story.life.cause is not None
    assert (story.life.cause.process, story.life.cause.kind) == (silent, termination.EXIT_CODE)


def test_a_rank_that_dies_of_an_accelerators_error_is_not_started_again_here() -> None:
    """What was said before the death counts, and also what is found out only when the worker is reaped."""
    for says_first in (True, False):
        story = Story(ranks=2, workers=1).serve()
        core, worker = (process for process in story.all if process.rank == 0)
        error = messages.Failed(cause="DeviceError", message="CUDA error: unspecified launch failure")
        if says_first:
            story.life.said(worker, error)
        story.life.pipe_closed(core if says_first else worker, bye=False)
        assert story.words()[0] == (1, "Dead" if says_first else "Restarting")
        story.life.said(worker, error)
        story.life.was_dying(worker)
        story.life.said(core, messages.Failed(cause="Exception", message="worker 0 failed"))
        actions = story.life.exited(worker, exit=Exit(exit_code=1), out_of_memory=False)
        actions += story.life.exited(core, exit=Exit(exit_code=1), out_of_memory=False)
        assert started(actions) == []
        assert (story.words(), story.life.deadline) == ([(1, "Dead"), (1, "Serving")], float("inf"))
        assert story.life.cause is not None
        assert (story.life.cause.process, story.life.cause.kind) == (worker, "DeviceError")


def test_a_device_error_forbids_a_restart_in_place_also_when_somebody_else_is_to_blame() -> None:
    story = Story(ranks=2, workers=1).serve()
    core, worker = (process for process in story.all if process.rank == 0)
    story.life.pipe_closed(core, bye=False)
    story.life.exited(core, exit=Exit(signal=9), out_of_memory=False)
    story.life.said(worker, messages.Failed(cause="DeviceError", message="CUDA error"))
    story.life.was_dying(worker)
    assert started(story.life.exited(worker, exit=Exit(exit_code=1), out_of_memory=False)) == []
    assert story.words() == [(1, "Dead"), (1, "Serving")]
    assert story.life.cause is not None
    assert story.life.cause.process == core


def test_an_engine_ends_when_its_only_rank_turns_out_to_have_died_of_an_accelerators_error() -> None:
    story = Story(workers=1).serve()
    (worker,) = story.workers
    story.life.pipe_closed(worker, bye=False)
    story.life.said(worker, messages.Failed(cause="DeviceError", message="CUDA error"))
    assert story.words() == [(1, "Restarting")]
    assert told(story.life.exited(worker, exit=Exit(exit_code=1), out_of_memory=False), "stop") == story.servers
    assert story.life.phase is Phase.STOPPING


def asked_for_stacks(actions: list[Action]) -> list[tuple[Process, bool]]:
    return [(action.process, action.asked_first) for action in actions if isinstance(action, Kill)]


def test_whoever_is_killed_because_of_a_death_is_asked_where_it_was_and_nobody_in_a_planned_end() -> None:
    story = Story(ranks=3, workers=1).serve()
    rank = [process for process in story.all if process.rank == 0]
    assert asked_for_stacks(story.life.pipe_closed(rank[0], bye=False)) == [(process, True) for process in rank]
    gone = [process for process in story.all if process.rank == 1]
    assert asked_for_stacks(story.life.asked_to_end_ranks((1,))) == [(process, False) for process in gone]
    story = Story(workers=1).serve()
    story.life.asked_to_stop()
    story.life.asked_to_stop()
    assert asked_for_stacks(story.life.clock(story.life.deadline)) == [(process, False) for process in story.all]


def test_whoever_is_missing_when_a_start_takes_too_long_is_asked_where_it_is_if_it_can_answer() -> None:
    story = Story()
    story.start()
    story.life.registered(story.cores[0])
    assert asked_for_stacks(story.life.clock(story.life.deadline)) == [(story.servers[0], False), (story.cores[0], True)]


def test_what_a_process_holds_is_used_again_when_it_is_reaped_and_not_when_its_end_begins() -> None:
    story = Story(workers=1).serve()
    core, worker = (process for process in story.all if process.rank == 0)
    begun = story.life.pipe_closed(core, bye=False) + story.life.pipe_closed(worker, bye=False)
    assert started(begun + story.life.exited(core, exit=KILLED, out_of_memory=False)) == [], "its worker still holds its device"
    again = started(story.life.exited(worker, exit=KILLED, out_of_memory=False))
    assert [process.incarnation for process in again] == [2, 2]
