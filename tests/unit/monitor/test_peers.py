"""What the launcher is told because of what is so elsewhere, by rows."""

from __future__ import annotations

from typing import Any

import pytest

from enginehouse_operator.monitor import peers
from enginehouse_operator.monitor.peers import Order, dead_elsewhere, orders
from enginehouse_operator.monitor.row import Row

KILLED = {"role": "worker", "rank": 0, "incarnation": 1, "pid": 7, "signal": 9, "class": "Signal", "message": "killed"}


def rank(state: str, number: int = 0, incarnation: int = 1) -> dict[str, Any]:
    return {"rank": number, "incarnation": incarnation, "state": state}


def failure(number: int | None, incarnation: int | None, second: int, **more: Any) -> dict[str, Any]:
    found = KILLED | {
        "rank": number,
        "incarnation": incarnation,
        "detectedTime": f"2026-01-01T00:00:{second:02}Z",
        "evidence": "long",
    }
    return {key: value for key, value in (found | {"message": f"at {second}"} | more).items() if value is not None}


def member(name: str, *ranks: dict[str, Any], failures: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"name": name, "uid": f"{name}-uid", "state": "Serving", "ranks": list(ranks), "failures": list(failures)}


def replica(*members: dict[str, Any], uid: str = "uid", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid, **metadata}, "status": {"members": list(members)}}


def found(own: tuple[dict[str, Any], ...], seen: dict[str, Any] | None) -> tuple[Order, ...]:
    row = Row(name="pod-0", uid="pod-0-uid", address="10.0.0.7", state="Serving", ranks=own)
    return orders(row, seen, replica_uid="uid")


OWN = member("pod-0", rank("Serving"))


@pytest.mark.parametrize(
    ("own", "others", "aborted"),
    [
        ([rank("Serving")], [member("pod-1", rank("Dead"), failures=(failure(0, 1, 1),))], [0]),
        ([rank("Starting")], [member("pod-1", rank("Dead"), failures=(failure(0, 1, 1),))], [0]),
        ([rank("Serving")], [member("pod-1", rank("Dead"))], [0]),
        ([rank("Serving"), rank("Serving", 1)], [member("pod-1", rank("Dead", 1)), member("pod-2", rank("Serving"))], [1]),
        ([rank("Serving"), rank("Serving", 1)], [member("pod-1", rank("Dead", 1)), member("pod-2", rank("Dead"))], [0, 1]),
        ([rank("Serving")], [member("pod-1", rank("Dead", 0, 2))], [0]),
        ([rank("Serving", 0, 2)], [member("pod-1", rank("Dead", 0, 1), failures=(failure(0, 1, 1),))], []),
        ([rank("Dead")], [member("pod-1", rank("Dead"), failures=(failure(0, 1, 1),))], []),
        ([rank("Serving")], [member("pod-1", rank("Restarting"), failures=(failure(0, 1, 1),))], []),
        ([rank("Serving")], [member("pod-1", rank("Draining"), failures=(failure(0, 1, 1),))], []),
        ([rank("Pending")], [member("pod-1", rank("Dead"), failures=(failure(0, 1, 1),))], []),
        ([rank("Serving")], [member("pod-1", rank("Dead", 1))], []),
        ([rank("Serving")], [member("pod-0", rank("Dead"))], []),
        ([rank("Serving")], [{"name": "pod-1", "uid": "x"}], []),
        ([], [member("pod-1", rank("Dead"))], []),
    ],
)
def test_ranks_that_died_elsewhere_in_the_same_or_a_newer_life_are_aborted(
    own: list[dict[str, Any]], others: list[dict[str, Any]], aborted: list[int]
) -> None:
    told = found(tuple(own), replica(OWN, *others))
    assert {order.reason for order in told} <= {peers.RANK_DIED_ELSEWHERE}
    assert [number for order in told for number in order.message()["ranks"]] == aborted
    assert all(order.message()["cause"]["class"] for order in told)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([member("pod-1", rank("Dead"), failures=(failure(0, 1, 1), failure(0, 1, 2)))], "at 2"),
        ([member("pod-1", rank("Dead"), failures=(failure(0, 1, 1), failure(1, 1, 2)))], "at 1"),
        ([member("pod-1", rank("Dead", 0, 2), failures=(failure(0, 2, 1), failure(0, 1, 2)))], "at 1"),
        ([member("pod-1", rank("Dead", 0, 2), failures=(failure(0, 1, 1),))], "at 1"),
        ([member("pod-1", rank("Dead")), member("pod-2", rank("Dead"), failures=(failure(0, 1, 3),))], "at 3"),
        ([member("pod-1", rank("Dead"), failures=(failure(None, None, 4, role="launcher"),))], "at 4"),
        ([member("pod-1", rank("Dead"))], "pod-1 says that its part of rank 0 is dead, and not why"),
        ([member("pod-1", rank("Dead"), failures=(failure(None, 1, 5, role="api-server"),))], "pod-1 says that its part of rank 0"),
    ],
)
def test_the_cause_is_the_newest_failure_of_that_rank_and_of_that_life_if_there_is_one(
    others: list[dict[str, Any]], message: str
) -> None:
    (order,) = found((rank("Serving"),), replica(OWN, *others))
    cause = order.message()["cause"]
    assert cause["message"].startswith(message)
    assert not {"evidence", "detectedTime"} & set(cause)


def test_a_cause_has_the_fields_of_the_termination_message() -> None:
    (order,) = found((rank("Serving"),), replica(OWN, member("pod-1", rank("Dead"), failures=(KILLED,))))
    assert order.message() == {"type": "abort", "ranks": [0], "cause": KILLED}


def test_what_is_known_of_a_cause_later_makes_no_second_order() -> None:
    (early,) = found((rank("Serving"),), replica(OWN, member("pod-1", rank("Dead"))))
    (late,) = found((rank("Serving"),), replica(OWN, member("pod-1", rank("Dead"), failures=(failure(0, 1, 1),))))
    assert early == late
    assert len({early, late}) == 1
    (again,) = found((rank("Serving", 0, 2),), replica(OWN, member("pod-1", rank("Dead", 0, 2))))
    assert again != early, "another life of the rank is another death"


@pytest.mark.parametrize(
    "seen",
    [
        None,
        replica(OWN, deletionTimestamp="2026-01-01T00:00:00Z"),
        replica(uid="its successor"),
        replica(OWN, uid="its successor"),
        {"metadata": {"uid": "x"}},
    ],
)
def test_a_replica_that_is_deleted_or_about_to_be_or_has_a_successor_of_its_name_drains(seen: dict[str, Any] | None) -> None:
    (order,) = found((rank("Serving"),), seen)
    assert (order.reason, order.message()) == (peers.REPLICA_DELETED, {"type": "drain"})


def test_a_rank_that_died_elsewhere_is_aborted_also_while_the_replica_is_deleted() -> None:
    told = found((rank("Draining"),), replica(OWN, member("pod-1", rank("Dead")), deletionTimestamp="2026-01-01T00:00:00Z"))
    assert [order.message()["type"] for order in told] == ["drain", "abort"]


def test_another_pods_row_ends_all_that_lives_here() -> None:
    seen = replica(member("pod-0") | {"uid": "another pod"})
    assert peers.is_foreign(seen, name="pod-0", uid="pod-0-uid", replica_uid="uid")
    (order,) = found((rank("Serving"), rank("Dead", 1), rank("Restarting", 2)), seen)
    assert (order.reason, order.message()) == (peers.POD_REPLACED, {"type": "abort", "ranks": [0, 2]})
    assert found((rank("Dead"),), seen) == ()


@pytest.mark.parametrize(
    "seen", [replica(), replica(OWN), {"metadata": {"uid": "uid"}}, {"metadata": {"uid": "uid"}, "status": None}]
)
def test_a_replica_in_which_nothing_is_wrong_asks_for_nothing(seen: dict[str, Any]) -> None:
    assert not peers.is_foreign(seen, name="pod-0", uid="pod-0-uid", replica_uid="uid")
    assert found((rank("Serving"),), seen) == ()


def test_the_log_names_ranks_that_are_dead_in_other_members_also_when_nothing_of_them_lives_here() -> None:
    seen = replica(member("own", rank("Dead")), member("a", rank("Dead"), rank("Serving", 1)), member("b", rank("Dead", 2)))
    assert dead_elsewhere(seen, own_name="own") == {(0, "a"), (2, "b")}
