"""What is in a row and when it changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_operator.monitor.row import (
    KEPT_FAILURES,
    ForeignRow,
    Row,
    acknowledged,
    adopted,
    failure,
    found_in,
    stamped,
    with_failure,
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
def test_the_row_of_another_pod_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ForeignRow, match="a member is born once"):
        found_in({"status": {"members": [row]}}, name="pod-0", uid="pod-uid")


@pytest.mark.parametrize("heard_state", [False, True])
def test_an_adopted_row_keeps_both_lives_failures(heard_state: bool) -> None:
    found = dataclasses.replace(
        with_failure(BORN, stamped(with_failure(BORN, died(1)), reported_time="t").failures[0]), state="Serving"
    )
    own = with_failure(with_failure(dataclasses.replace(BORN, state="Failed"), died(1)), died(2))
    row = adopted(own, found, heard_state=heard_state)
    assert [(known["pid"], known.get("reportedTime")) for known in row.failures] == [(1, "t"), (2, None)]
    assert row.state == ("Failed" if heard_state else "Serving")
