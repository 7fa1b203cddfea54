"""Which failures are told for the first time, and so are counted: each once, whoever tells it and however often."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from world import EPOCH, World, engine_spec

from enginehouse_operator import api, history, metrics
from enginehouse_operator.failures import Failure
from enginehouse_operator.status import engine_status

TWO_RANKS = api.Parallelism(data=2)


class Counting:
    """A world, and what each of its passes would count."""

    def __init__(self, **changes: Any) -> None:
        self.world = World(engine_spec(**changes))
        self.world.settle()
        self.told: list[Failure] = []

    def one_pass(self) -> None:
        """The same order as `reconcile.py`: plan, act, status. An operator that starts anew does just the same."""
        plan, replicas = self.world.plans()[0], tuple(self.world.replicas.values())
        self.world.one_pass()
        previous = self.world.engine.status
        status = engine_status(
            self.world.engine, self.world.spec, replicas, plan=plan, problems=(), endpoint="", now=self.world.now
        )
        self.told += history.untold(previous, replicas)
        self.world.engine = msgspec.structs.replace(self.world.engine, status=status)

    def settle(self) -> None:
        for _ in range(20):
            self.one_pass()
            self.world.tick()
            self.world.now += timedelta(seconds=40)

    @property
    def classes(self) -> list[str]:
        return [failure.class_ for failure in self.told]


def test_a_death_counts_once_through_end_successor_and_a_later_death() -> None:
    counting = Counting()
    counting.settle()
    assert counting.classes == []
    counting.world.kill(counting.world.name_of(0, 1))
    counting.settle()
    assert counting.classes == ["Signal"]
    (successor,) = counting.world.live
    assert [failure.class_ for failure in successor.spec.failures] == ["Signal"], "which carries it, and does not count again"
    counting.world.kill(successor.name, "OutOfMemory")
    counting.settle()
    assert counting.classes == ["Signal", "OutOfMemory"]


def test_two_ranks_that_die_in_one_pass_both_count_though_the_status_has_room_for_one() -> None:
    counting = Counting(parallelism=api.Parallelism(data=3))
    name = counting.world.name_of(0, 1)
    counting.world.rank_dies(name, 0, state="Restarting")
    counting.world.now += timedelta(milliseconds=5)
    counting.world.rank_dies(name, 2, state="Restarting", class_="OutOfMemory")
    counting.settle()
    assert sorted(counting.classes) == ["OutOfMemory", "Signal"]
    assert counting.world.engine.status["lastFailure"]["class"] == "OutOfMemory"


@pytest.mark.parametrize("rows", [(2, 3), (3, 2)])
@pytest.mark.parametrize("in_one_pass", [True, False])
def test_a_death_that_two_monitors_tell_counts_once_as_the_first_of_them_saw_it(rows: tuple[int, int], in_one_pass: bool) -> None:
    counting = Counting(parallelism=api.Parallelism(data=2, tensor=2, workers_per_member=1))
    (replica,) = counting.world.live
    for seconds, row in enumerate(rows):  # of the two members of rank 1
        died = Failure(class_="Signal", role="worker", rank=1, incarnation=1, detected_time=EPOCH + timedelta(seconds=seconds))
        told = list(counting.world.replicas[replica.name].rows)
        told[row] = msgspec.structs.replace(told[row], failures=(died,))
        counting.world.change(counting.world.replicas[replica.name], rows=tuple(told))
        if not in_one_pass:
            counting.one_pass()
    counting.one_pass()
    assert [(failure.class_, failure.detected_time) for failure in counting.told] == [("Signal", EPOCH)]


def test_a_death_that_the_kubelet_tells_after_the_monitor_counts_once() -> None:
    """The end of the pod has the time of the kubelet, and of a replica that is dead the end is told, not the row."""
    counting = Counting()
    name = counting.world.name_of(0, 1)
    counting.world.rank_dies(name, 0, state="Restarting")
    counting.one_pass()
    assert counting.classes == ["Signal"]
    (row,) = counting.world.replicas[name].rows
    (record,) = row.failures
    (member,) = counting.world.replicas[name].members
    counting.world.now += timedelta(seconds=2)
    seen = msgspec.structs.replace(record, detected_time=counting.world.now)
    counting.world.change(counting.world.replicas[name], rows=(msgspec.structs.replace(row, state="Failed"),))
    counting.world.change_member(member.name, has_ended=True, is_ready=False, failure=seen)
    counting.one_pass()
    counting.one_pass()
    assert counting.world.engine.status["lastFailure"]["detectedTime"] == "2026-01-01T00:00:02Z"
    assert counting.classes == ["Signal"]


def test_what_the_status_told_already_does_not_count_again_when_an_operator_starts() -> None:
    counting = Counting(parallelism=TWO_RANKS)
    counting.world.rank_dies(counting.world.name_of(0, 1), 0, state="Restarting")
    counting.settle()
    replicas = tuple(counting.world.replicas.values())
    assert any(row.failures for replica in replicas for row in replica.rows), "the row still has it"
    assert history.untold(counting.world.engine.status, replicas) == ()


def test_a_pod_that_somebody_removed_is_no_failure() -> None:
    counting = Counting()
    counting.world.remove(counting.world.name_of(0, 1))
    counting.settle()
    assert counting.classes == []


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    ("class_", "counted", "reported_seconds", "noticed_by", "status_seconds"),
    [
        ("Signal", "Signal", 0.02, "monitor", 0.5),
        ("Quantum", "Unknown", 0.02, "monitor", 0.5),  # of a later version: a class is a label, and labels are few
        ("Lost", "Lost", None, "kubernetes", 0.5),
        ("Signal", "Signal", -3.0, "monitor", -2.0),  # the node's clock is ahead
    ],
)
def test_a_counted_failure_is_told_by_class_and_by_how_long_it_took(
    class_: str, counted: str, reported_seconds: float | None, noticed_by: str, status_seconds: float
) -> None:
    def sums() -> list[float]:
        return [
            value("enginehouse_failures_total", **{"class": counted}),
            value("enginehouse_death_to_report_seconds_count"),
            value("enginehouse_death_to_report_seconds_sum"),
            value("enginehouse_death_to_status_seconds_count", noticed_by=noticed_by),
            value("enginehouse_death_to_status_seconds_sum", noticed_by=noticed_by),
        ]

    before = sums()
    reported = None if reported_seconds is None else EPOCH + timedelta(seconds=reported_seconds)
    failure = Failure(class_=class_, detected_time=EPOCH, reported_time=reported)
    metrics.count_failure(failure, now=EPOCH + timedelta(seconds=status_seconds))
    grown = [after - was for after, was in zip(sums(), before, strict=True)]
    expected = [1.0, float(reported is not None), max(0.0, reported_seconds or 0.0), 1.0, max(0.0, status_seconds)]
    assert grown == pytest.approx(expected)
