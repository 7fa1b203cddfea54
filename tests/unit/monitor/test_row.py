"""What is in a row and when it changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_operator.monitor.row import (
    KEPT_FAILURES,
    Row,
    acknowledged,
    adopted,
    failure,
    found_in,
    stamped,
    was_told_of_a_death,
    with_failure,
    with_launcher_gone,
    with_state,
)

BORN = Row(name="pod-0", uid="pod-uid", address="10.0.0.7")


def died(pid: int, **changes: Any) -> dict[str, Any]:
    message = {"type": "exited", "role": "engine-core", "rank": 0, "index": 0, "incarnation": 1, "pid": pid, "planned": False}
    cause = {"class": "Signal", "message": "killed", "signal": 9, "exitCode": None}
    return failure({**message, **cause, **changes}, detected_by="Pipe", detected_time="2026-01-01T00:00:00.000001Z")


def test_a_failure_has_the_fields_of_the_contract_and_no_others() -> None:
    assert died(7) == {
        "role": "engine-core",
        "rank": 0,
        "index": 0,
        "incarnation": 1,
        "pid": 7,
        "class": "Signal",
        "message": "killed",
        "signal": 9,
        "detectedBy": "Pipe",
        "detectedTime": "2026-01-01T00:00:00.000001Z",
    }


def test_a_long_message_keeps_its_end() -> None:
    assert died(7, message="x" * 9000 + "the end")["message"].endswith("xthe end")
    assert len(died(7, message="x" * 9000)["message"]) == 4096


@given(st.lists(st.integers(0, 12), max_size=40))
def test_a_failure_is_kept_once_and_the_eight_newest_in_order(pids: list[int]) -> None:
    row = BORN
    for pid in pids:
        row = with_failure(row, died(pid))
    kept = [known["pid"] for known in row.failures]
    assert len(kept) == len(set(kept)) <= KEPT_FAILURES
    assert not pids or pids[-1] in kept
    order = [pid for index, pid in enumerate(pids) if pid not in pids[:index]]
    if len(order) <= KEPT_FAILURES:
        assert kept == order


def test_a_state_takes_the_ranks_over_whole_and_leaves_the_failures() -> None:
    row = with_failure(
        with_state(BORN, {"state": "Serving", "ranks": [{"rank": 0, "state": "Serving"}, {"rank": 1, "state": "Serving"}]}), died(7)
    )
    row = with_state(
        row, {"state": "Failed", "ranks": [{"rank": 1, "incarnation": 1, "state": "Dead", "kvBlocks": None, "new": 5}]}
    )
    assert (row.state, row.ranks) == ("Failed", ({"rank": 1, "incarnation": 1, "state": "Dead"},))
    assert len(row.failures) == 1


@pytest.mark.parametrize(
    ("before", "after", "noticed", "told"),
    [
        (["Serving", "Serving"], ["Serving", "Dead"], [], True),
        (["Serving", "Serving"], ["Serving", "Dead"], [1], False),
        (["Serving", "Serving"], ["Dead", "Dead"], [1], True),
        (["Serving", "Dead"], ["Serving", "Dead"], [], False),
        (["Serving", "Serving"], ["Serving", "Restarting"], [], False),
    ],
    ids=["elsewhere", "here", "one here, one elsewhere", "known", "not dead"],
)
def test_a_pod_was_told_of_a_death_if_none_of_its_own_processes_died_of_it(
    before: list[str], after: list[str], noticed: list[int], told: bool
) -> None:
    was, now = (
        with_state(BORN, {"state": "Serving", "ranks": [{"rank": rank, "state": state} for rank, state in enumerate(states)]})
        for states in (before, after)
    )
    assert was_told_of_a_death(was, now, noticed=noticed) is told


def test_the_same_state_is_the_same_row() -> None:
    message = {
        "state": "Serving",
        "ranks": [{"rank": 0, "incarnation": 1, "state": "Serving", "maxContextLength": 9, "kvBlocks": 4}],
    }
    row = with_state(BORN, message)
    assert with_state(row, message) == row
    assert found_in({"status": {"members": [row.fields()]}}, name="pod-0", uid="pod-uid") == row


def test_the_time_of_the_report_is_given_once_and_stays() -> None:
    row = with_failure(BORN, died(7))
    written = stamped(row, reported_time="first")
    again = stamped(acknowledged(with_failure(row, died(8)), written), reported_time="second")
    assert [known["reportedTime"] for known in again.failures] == ["first", "second"]
    assert acknowledged(row, written) == written


@pytest.mark.parametrize("replica", [{}, {"status": None}, {"status": {"members": [{"name": "pod-1", "uid": "pod-uid"}]}}])
def test_without_a_row_there_is_none(replica: dict[str, Any]) -> None:
    assert found_in(replica, name="pod-0", uid="pod-uid") is None


@pytest.mark.parametrize("row", [{"name": "pod-0", "uid": "another"}, {"name": "pod-0"}])
def test_the_row_of_another_pod_is_not_this_pods(row: dict[str, Any]) -> None:
    assert found_in({"status": {"members": [row]}}, name="pod-0", uid="pod-uid") is None


def test_api_servers_are_in_the_row_of_a_pod_that_has_some() -> None:
    message = {"state": "Serving", "ranks": [], "apiServers": [{"index": 0, "incarnation": 2, "state": "Restarting", "pid": 9}]}
    row = with_state(BORN, message)
    assert row.fields()["apiServers"] == [{"index": 0, "incarnation": 2, "state": "Restarting"}]
    assert found_in({"status": {"members": [row.fields()]}}, name="pod-0", uid="pod-uid") == row
    assert "apiServers" not in with_state(row, {"state": "Serving", "ranks": []}).fields()


def test_evidence_is_that_of_the_newest_failure_and_keeps_its_end() -> None:
    row = with_failure(with_failure(BORN, died(7, evidence="old")), died(8, evidence="x" * 5000 + "the end"))
    old, new = row.failures
    assert "evidence" not in old
    assert len(new["evidence"]) == 4096
    assert new["evidence"].endswith("xthe end")


def test_evidence_that_comes_later_makes_no_second_failure_and_only_the_newest_takes_it() -> None:
    row = stamped(with_failure(with_failure(BORN, died(7)), died(8)), reported_time="t")
    with_evidence = with_failure(row, died(8, evidence="stacks"))
    assert [known.get("evidence") for known in with_evidence.failures] == [None, "stacks"]
    assert [known["reportedTime"] for known in with_evidence.failures] == ["t", "t"]
    assert with_failure(with_evidence, died(8)) == with_evidence, "what is told again without it takes nothing away"
    assert with_failure(row, died(7, evidence="late")) == row


def test_a_launcher_that_is_gone_takes_ranks_and_api_servers_with_it() -> None:
    state = {
        "state": "Serving",
        "ranks": [{"rank": 0, "state": "Serving", "kvBlocks": 3}],
        "apiServers": [{"index": 0, "state": "Serving"}],
    }
    row = with_launcher_gone(with_state(BORN, state))
    assert (row.state, row.ranks, row.api_servers) == (
        "Failed",
        ({"rank": 0, "state": "Dead", "kvBlocks": 3},),
        ({"index": 0, "state": "Dead"},),
    )


@pytest.mark.parametrize("heard_state", [False, True])
def test_an_adopted_row_keeps_both_lives_failures(heard_state: bool) -> None:
    found = dataclasses.replace(
        with_failure(BORN, stamped(with_failure(BORN, died(1)), reported_time="t").failures[0]), state="Serving"
    )
    own = with_failure(with_failure(dataclasses.replace(BORN, state="Failed"), died(1)), died(2))
    row = adopted(own, found, heard_state=heard_state)
    assert [(known["pid"], known.get("reportedTime")) for known in row.failures] == [(1, "t"), (2, None)]
    assert row.state == ("Failed" if heard_state else "Serving")


def test_two_api_servers_that_could_not_be_started_are_two_failures() -> None:
    row = BORN
    for index in (0, 1, 0):
        row = with_failure(row, {"role": "api-server", "index": index, "incarnation": 1, "class": "Exception"})
    assert [known["index"] for known in row.failures] == [0, 1]


def test_placement_is_found_again_and_long_words_are_cut_to_what_the_schema_takes() -> None:
    groups = [{"rank": 0, "state": "Pending", "bundles": [{"index": 0, "lacking": "x" * 2000}]}]
    row = with_state(BORN, {"state": "Starting", "ranks": [], "placement": groups})
    assert len(row.placement[0]["bundles"][0]["lacking"]) == 253
    found = found_in({"status": {"members": [row.fields()]}}, name="pod-0", uid="pod-uid")
    assert found == row
    assert adopted(BORN, row, heard_state=False).placement == row.placement
    assert with_launcher_gone(row).placement == ()
