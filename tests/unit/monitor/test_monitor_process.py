"""The monitor as launcher and API server see it: a real process, real pipes, TLS; only the API server is a fake one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest


def open_descriptors(pid: int) -> list[str]:
    return sorted(os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())


def test_the_row_is_born_before_the_launcher_hears_stored(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    assert launcher.hear() == {"type": "stored"}
    assert api.row() == {"name": "pod-0", "uid": "pod-uid", "state": "Starting", "address": "10.0.0.7", "ranks": [], "failures": []}


def test_stored_is_not_said_while_the_api_does_not_answer(api: Any, monitor: Any) -> None:
    api.failures = [503, 0, 429, 500]
    launcher = monitor().launcher()
    launcher.connection.settimeout(0.05)
    with pytest.raises(TimeoutError):
        launcher.hear()
    launcher.connection.settimeout(20)
    assert launcher.hear() == {"type": "stored"}
    assert api.failures == []


def test_a_state_is_written_once_however_often_it_is_said(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = one.launcher()
    launcher.hear()
    for _ in range(3):
        launcher.state("Serving", maxContextLength=128, kvBlocks=9)
    api.wait_for(lambda a: a.row()["state"] == "Serving")
    writes = api.writes()
    launcher.state("Serving", maxContextLength=128, kvBlocks=9)
    launcher.say({"type": "something new"})
    assert one.terminate() == 0
    assert api.writes() == writes
    assert api.row()["ranks"] == [{"rank": 0, "incarnation": 1, "state": "Serving", "maxContextLength": 128, "kvBlocks": 9}]


def test_a_death_is_in_the_row_with_the_time_its_pipe_closed(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    os.close(launcher.process())
    time.sleep(0.01)
    launcher.exited()
    launcher.state("Failed")
    api.wait_for(lambda a: a.row()["failures"] and a.row()["state"] == "Failed")
    (failure,) = api.row()["failures"]
    detected, reported = failure.pop("detectedTime"), failure.pop("reportedTime")
    assert detected < reported
    assert failure == {
        "role": "engine-core",
        "rank": 0,
        "incarnation": 1,
        "pid": 7,
        "signal": 9,
        "class": "Signal",
        "message": "killed",
        "detectedBy": "Pipe",
    }


@pytest.mark.parametrize("order", ["pipe first", "word first"])
def test_a_death_that_is_told_in_both_ways_at_once_is_one_failure(api: Any, monitor: Any, order: str) -> None:
    one = monitor()
    launcher = one.launcher()
    launcher.hear()
    write_end = launcher.process()
    launcher.state("Serving")
    api.wait_for(lambda a: a.row()["state"] == "Serving")
    one.process.send_signal(signal.SIGSTOP)
    if order == "pipe first":
        os.close(write_end)
    launcher.state("Failed")
    launcher.exited()
    if order == "word first":
        os.close(write_end)
    one.process.send_signal(signal.SIGCONT)
    api.wait_for(lambda a: a.row()["failures"] and a.row()["state"] == "Failed")
    assert one.terminate() == 0
    assert [failure["detectedBy"] for failure in api.row()["failures"]] == ["Pipe"]


def test_a_death_that_only_the_launcher_saw_says_so(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    write_end = launcher.process()
    launcher.exited()
    api.wait_for(lambda a: a.row()["failures"])
    assert api.row()["failures"][0]["detectedBy"] == "Launcher"
    os.close(write_end)


def test_a_planned_exit_is_no_failure(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = one.launcher()
    launcher.hear()
    write_end = launcher.process()
    os.write(write_end, b"bye\n")
    os.close(write_end)
    launcher.exited(planned=True, signal=None, exitCode=0)
    os.write(launcher.write_end, b"bye\n")
    launcher.state("Ended")
    launcher.close()
    api.wait_for(lambda a: a.row()["state"] == "Ended")
    assert one.terminate() == 0
    assert api.row()["failures"] == []


def test_the_launchers_own_death_is_a_failure(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    launcher.state("Serving")
    launcher.close()
    api.wait_for(lambda a: a.row()["state"] == "Failed")
    assert [(f["role"], f["class"]) for f in api.row()["failures"]] == [("launcher", "Unknown")]
    assert api.row()["ranks"][0]["state"] == "Dead"


def test_a_restarted_monitor_keeps_what_was_written_and_writes_nothing_new(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = one.launcher()
    launcher.hear()
    launcher.exited()
    launcher.state("Serving")
    api.wait_for(lambda a: a.row()["failures"] and a.row()["state"] == "Serving")
    one.process.kill()
    one.process.wait()
    row, writes = api.row(), api.writes()
    again = monitor()
    launcher = again.launcher()
    assert launcher.hear() == {"type": "stored"}
    launcher.exited()
    launcher.state("Serving")
    assert again.terminate() == 0
    assert (api.row(), api.writes()) == (row, writes)


def test_a_row_of_another_pod_ends_the_monitor_and_is_not_touched(api: Any, monitor: Any) -> None:
    api.members = [{"name": "pod-0", "uid": "another"}]
    one = monitor()
    assert one.process.wait(20) == 1
    assert "belongs to the pod with UID another" in one.log.read_text()
    assert api.members == [{"name": "pod-0", "uid": "another"}]


def test_a_row_that_another_pod_writes_first_ends_the_monitor(api: Any, monitor: Any) -> None:
    """Between reading the replica and the first write."""
    handle = api.handle

    def race(method: str, *rest: Any) -> Any:
        if method == "PATCH" and not api.members:
            api.members = [{"name": "pod-0", "uid": "another"}]
            api.version += 1
        return handle(method, *rest)

    api.handle = race
    one = monitor()
    assert one.process.wait(20) == 1
    assert api.members == [{"name": "pod-0", "uid": "another"}]


@pytest.mark.parametrize("change", [{"exists": False}, {"uid": "its successor"}])
def test_a_replica_that_is_not_this_pods_ends_a_monitor_that_was_not_born(api: Any, monitor: Any, change: dict[str, Any]) -> None:
    for key, value in change.items():
        setattr(api, key, value)
    one = monitor()
    assert one.process.wait(20) == 1
    assert api.writes() == 0


def test_a_replica_that_took_the_name_later_aborts_the_engine(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    api.uid, api.members = "its successor", []
    launcher.state("Serving")
    assert launcher.hear() == {"type": "abort", "ranks": [0]}
    assert api.row() is None, "what was written to the wrong one is taken back"


def test_a_rotated_token_is_read_again(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    api.rotate("second")
    launcher.state("Serving")
    api.wait_for(lambda a: a.row()["state"] == "Serving")


def test_an_outage_loses_nothing_and_only_the_newest_state_is_written(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    api.failures = [503] * 3
    launcher.state("Starting")
    api.wait_for(lambda a: len(a.failures) < 3)
    launcher.exited()
    launcher.state("Failed")
    api.wait_for(lambda a: a.row()["state"] == "Failed")
    assert len(api.row()["failures"]) == 1


def test_a_refused_row_is_not_repeated_until_it_changes(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    api.failures = [422]
    launcher.state("Serving")
    api.wait_for(lambda a: not a.failures)
    writes = api.writes()
    launcher.state("Draining")
    api.wait_for(lambda a: a.row()["state"] == "Draining")
    assert api.writes() == writes + 1


def test_bad_messages_are_ignored_and_leak_no_descriptor(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = one.launcher()
    launcher.hear()
    before = open_descriptors(one.process.pid)
    pipe, _ = os.pipe()
    for message in [
        {"type": "process"},
        {"type": "process", "role": "x", "rank": 0, "index": 0, "incarnation": 1, "pid": 1},
        {"type": "state"},
    ]:
        launcher.say(message, pipe)
    launcher.connection.send(b"no json")
    launcher.say({"type": "state", "state": "Serving", "ranks": [{"rank": "zero"}]}, pipe, pipe)
    launcher.state("Serving")
    api.wait_for(lambda a: a.row()["state"] == "Serving")
    assert open_descriptors(one.process.pid) == before


def test_descriptors_of_exited_processes_and_lost_launchers_are_given_back(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = one.launcher()
    launcher.hear()
    before = len(open_descriptors(one.process.pid))
    for number in range(20):
        os.close(launcher.process(pid=number))
        launcher.exited(planned=True, pid=number)
    held = [launcher.process(rank=rank) for rank in range(20)]
    launcher.connection.close()
    again = one.launcher()
    assert again.hear() == {"type": "stored"}
    again.state("Serving")
    api.wait_for(lambda a: a.row()["state"] == "Serving")
    assert len(open_descriptors(one.process.pid)) == before
    for write_end in held:
        os.close(write_end)


def test_a_settled_monitor_neither_writes_nor_wakes_and_is_small(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = one.launcher()
    launcher.hear()
    launcher.state("Serving", maxContextLength=128, kvBlocks=9)
    api.wait_for(lambda a: a.row()["state"] == "Serving")
    time.sleep(0.2)  # the answer to the last write is still being read
    requests, switches = len(api.requests), one.status("voluntary_ctxt_switches")
    time.sleep(1.5)
    assert len(api.requests) == requests
    assert one.status("voluntary_ctxt_switches") == switches
    assert one.status("VmRSS") < 30 * 1024
