"""The monitor as launcher and API server see it: a real process, real pipes, TLS; only the API server is a fake one."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from monitor_process import DEADLINE_SECONDS, MonitorProcess


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
        "index": 0,
        "incarnation": 1,
        "pid": 7,
        "signal": 9,
        "class": "Signal",
        "message": "killed",
        "detectedBy": "Pipe",
    }


def test_a_death_has_the_time_of_the_lost_lock_when_that_came_before_the_pipe(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    read_end, write_end = os.pipe()
    lost, lost_write_end = os.pipe()
    pidfd = os.pidfd_open(os.getpid())
    identity = {"role": "engine-core", "rank": 0, "index": 0, "incarnation": 1, "pid": 7}
    launcher.say({"type": "process", **identity}, read_end, pidfd, lost)
    for descriptor in (read_end, pidfd, lost):
        os.close(descriptor)
    before = datetime.now(UTC).isoformat()
    os.close(lost_write_end)
    launcher.state("Restarting")
    api.wait_for(lambda api: api.row()["state"] == "Restarting")
    after = datetime.now(UTC).isoformat()
    os.close(write_end)
    launcher.exited()
    api.wait_for(lambda api: api.row()["failures"])
    (failure,) = api.row()["failures"]
    assert failure["detectedBy"] == "Pipe"
    assert before < failure["detectedTime"].replace("Z", "+00:00") < after


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


def test_a_lock_that_was_lost_while_the_monitor_slept_tells_although_the_pipe_is_still_open(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = one.launcher()
    launcher.hear()
    ends = [os.pipe() for _ in ("pipe", "lock")]
    pidfd = os.pidfd_open(os.getpid())
    identity = {"role": "engine-core", "rank": 0, "index": 0, "incarnation": 1, "pid": 7}
    launcher.say({"type": "process", **identity}, ends[0][0], pidfd, ends[1][0])
    launcher.state("Serving")
    api.wait_for(lambda a: a.row()["state"] == "Serving")
    one.process.send_signal(signal.SIGSTOP)
    launcher.state("Restarting")  # So the launcher is what the monitor looks at first.
    os.close(ends[1][1])
    launcher.exited()
    one.process.send_signal(signal.SIGCONT)
    api.wait_for(lambda a: a.row()["failures"])
    assert [failure["detectedBy"] for failure in api.row()["failures"]] == ["Pipe"]
    for descriptor in (ends[0][0], ends[0][1], pidfd, ends[1][0]):
        os.close(descriptor)


def test_a_death_that_only_the_launcher_saw_says_so(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    write_end = launcher.process()
    launcher.exited()
    api.wait_for(lambda a: a.row()["failures"])
    assert api.row()["failures"][0]["detectedBy"] == "Launcher"
    os.close(write_end)


def test_a_death_is_in_the_row_whatever_characters_its_cause_and_its_last_lines_have(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    launcher.exited(message="deleted \x7f, \x85, \u2028 and half a 🤗: \udd17", evidence="🚨 the last line")
    api.wait_for(lambda a: a.row()["failures"])
    (failure,) = api.row()["failures"]
    assert failure["message"] == "deleted \x7f, \x85, \u2028 and half a 🤗: \ufffd"
    assert failure["evidence"] == "🚨 the last line"


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


def test_nobody_waits_for_the_ends_of_a_dead_launchers_processes(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = one.launcher()
    launcher.hear()
    alone = one.held_pipes()
    held = [launcher.process(rank=rank) for rank in range(8)]
    launcher.state("Serving")
    api.wait_for(lambda a: a.row()["state"] == "Serving")
    assert one.held_pipes() == alone + 8
    launcher.close()
    api.wait_for(lambda a: a.row()["failures"])
    assert one.held_pipes() == alone
    for write_end in held:
        os.close(write_end)
    assert one.terminate() == 0
    assert [failure["role"] for failure in api.row()["failures"]] == ["launcher"]


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
    api.wait_for(lambda a: a.row()["state"] == "Serving" and a.watches)
    time.sleep(0.5)  # the answer to the last write, and what the watch says of it, are still being read
    requests, switches = len(api.requests), one.switches()
    time.sleep(1.5)
    assert len(api.requests) == requests
    assert one.switches() == switches
    assert one.status("VmRSS") < 30 * 1024


def test_a_leader_is_told_how_many_ranks_are_wanted_after_stored_and_whenever_it_changes(api: Any, monitor: Any) -> None:
    api.data = 2
    one = monitor(leads=True)
    launcher = one.launcher()
    assert [launcher.hear(), launcher.hear()] == [{"type": "stored"}, {"type": "resize", "data": 2}]
    for data in (3, 2, 3):
        api.change(data=data)
        assert launcher.hear() == {"type": "resize", "data": data}
    api.change(members=[*api.members, {"name": "pod-1", "uid": "x"}])
    launcher.close()
    again = one.launcher()
    assert [again.hear(), again.hear()] == [{"type": "stored"}, {"type": "resize", "data": 3}]
    api.change(deleting=True)
    assert again.hear() == {"type": "drain"}
    api.change(data=1)
    api.wait_for(lambda a: a.watches)
    assert one.terminate() == 0
    assert again.connection.recv(100) == b"", "nothing is added to what ends"


def test_a_member_that_does_not_lead_is_told_of_no_ranks(api: Any, monitor: Any) -> None:
    api.data = 2
    one = monitor()
    launcher = one.launcher()
    assert launcher.hear() == {"type": "stored"}
    api.change(data=3)
    assert one.terminate() == 0
    assert launcher.connection.recv(100) == b""


def test_where_ray_has_placed_the_ranks_is_in_the_row_as_the_schema_has_it(api: Any, monitor: Any) -> None:
    launcher = monitor().launcher()
    launcher.hear()
    lacks = {"index": 1, "state": "Pending", "lacking": "needs accelerator: 1, member 1 has not joined", "node": ""}
    group = {"rank": 1, "incarnation": 1, "strategy": "Pack", "state": "Pending", "bundles": [{"index": 0, "node": None}, lacks]}
    launcher.say({"type": "state", "state": "Serving", "ranks": [{"rank": 1, "state": "Pending"}], "placement": [{"rank": "one"}]})
    launcher.say({"type": "state", "state": "Serving", "ranks": [{"rank": 1, "state": "Pending"}], "placement": [group]})
    api.wait_for(lambda a: a.row()["state"] == "Serving")
    bundles = [{"index": 0}, {key: lacks[key] for key in ("index", "state", "lacking")}]
    assert api.row()["placement"] == [{"rank": 1, "strategy": "Pack", "state": "Pending", "bundles": bundles}]
    launcher.state("Serving")
    api.wait_for(lambda a: "placement" not in a.row())


def test_in_json_each_line_of_its_log_is_an_object(api: Any, monitor: Any) -> None:
    api.failures = [503]
    one = monitor(log_format="json")
    assert one.launcher().hear() == {"type": "stored"}
    assert one.terminate() == 0
    said = [json.loads(line) for line in one.log.read_text().splitlines()]
    assert {record["logger"] for record in said} == {"enginehouse.monitor"}
    assert "warning" in [record["level"] for record in said]
    assert any(record["message"].startswith("the launcher is here, pid ") for record in said)


def test_also_what_ends_a_monitor_is_an_object(tmp_path: Path) -> None:
    of_replica = {"namespace": "here", "replica": "replica", "replica_uid": "u", "member": "longer-than-a-socket-may-be" * 5}
    one = MonitorProcess(tmp_path, host="127.0.0.1", port=9, credentials=tmp_path, **of_replica, log_format="json")
    assert one.process.wait(DEADLINE_SECONDS) == 1
    (said,) = [json.loads(line) for line in one.log.read_text().splitlines()]
    assert (said["level"], said["logger"]) == ("critical", "enginehouse.monitor")
    assert "AF_UNIX path too long" in said["error"]
