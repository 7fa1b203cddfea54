"""The operator dies after its k-th write, for every k, in every change an engine can undergo: the world ends the same.

Reference: the same change without a death. Same = the same picture (names by place; no UIDs, times, addresses), and no replica
and no member created more often than once. The operator dies by os._exit right after the API server acknowledged the write; a
new process goes on. For endings, of which each is to be written exactly once, all operators of a chain die after their first write.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
from operator_zygote import DIED_ON_PURPOSE
from scripted_kubelet import Pod, failure
from settled_world import is_deleted, is_settled
from stage import Raw, Stage

pytestmark = pytest.mark.api

REPLICAS = 2
AT_ONCE = 4
NOBODY_DIES = 2
"""After so many numbers in a row that no operator reached, the change is over."""
LEADS = "works on"

NewStage = Callable[[], AbstractContextManager[Stage]]
Change = tuple[dict[str, Any] | None, int | None]
"""The spec to merge (None = delete the engine) and the replicas afterwards (None = none, deleted)."""

ONE, SEVERAL = {"replicas": 1}, {"replicas": REPLICAS}
CHANGES: dict[str, tuple[Raw | None, Change]] = {
    "apply": (None, (SEVERAL, REPLICAS)),
    "apply, with members": (None, ({"executor": "Simulated", "parallelism": {"data": 3, "workersPerMember": 1}}, 1)),
    "apply, with Ray": (None, ({"executor": "Ray", "parallelism": {"data": 2}}, 1)),
    "scale up": (ONE, (SEVERAL, REPLICAS)),
    "scale down": (SEVERAL, (ONE, 1)),
    "rollout": (ONE, ({"context": {"maxLength": 4096}}, 1)),
    "rollout of two": (SEVERAL, ({"context": {"maxLength": 4096}}, REPLICAS)),
    "suspend": (SEVERAL, ({"suspend": True}, 0)),
    "delete": (SEVERAL, (None, None)),
    "more ranks": ({"executor": "Ray", "parallelism": {"data": 1}}, ({"parallelism": {"data": 3}}, 1)),
    "fewer ranks": ({"executor": "Ray", "parallelism": {"data": 3}}, ({"parallelism": {"data": 1}}, 1)),
}
"""From which spec, if there is one; to which."""
MARKS = {"rollout of two": [pytest.mark.slow]}
"""One replica after the other: each write of a rollout twice."""


def change(stage: Stage, before: Raw | None, what: Change, *, die_after: int | None) -> tuple[bool, list[str]]:
    """Bring the engine to its start, change it while an operator that dies is at work, and let another finish.

    Whether it died, and the writes of the change."""
    if before is not None:
        first = stage.operator()
        stage.apply(**before)
        stage.until_settled(is_settled(stage, before.get("replicas", 1)))
        first.kill()
    done = len(stage.writes())
    spec, after = what
    mortal = stage.operator(die_after=die_after)
    if spec is None:
        stage.delete()
    else:
        stage.apply(**spec)
    goal = is_deleted(stage) if after is None else is_settled(stage, after)
    died = False
    if die_after is not None:
        stage.until(lambda: mortal.exit_code is not None or goal(), saying="the operator dies, or all is done")
        died = mortal.exit_code == DIED_ON_PURPOSE
        if died:
            leaders = stage.log.count(LEADS)
            stage.operator()
            stage.until(lambda: stage.log.count(LEADS) > leaders, saying="the next one leads")
    stage.until_settled(goal)
    return died, stage.writes()[done:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in CHANGES])
def test_the_operator_may_die_after_any_write(name: str, new_stage: NewStage) -> None:
    before, what = CHANGES[name]
    with new_stage() as stage:
        _, written = change(stage, before, what, die_after=None)
        expected, writes = stage.picture(), len(written)

    def dies_after(k: int) -> tuple[bool, dict[str, Any], dict[str, int]]:
        with new_stage() as stage:
            died, taken = change(stage, before, what, die_after=k)
            assert died or len(taken) < k, f"it outlived write {k} of {taken}"
            return died, stage.picture(), {birth: times for birth, times in stage.births().items() if times > 1}

    outcomes: dict[int, tuple[bool, dict[str, Any], dict[str, int]]] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # Up to a run that ends before its k-th write. How many writes a change takes depends on timing: statuses in between.
        while not outcomes or any(died for died, _, _ in list(outcomes.values())[-NOBODY_DIES:]):
            first = len(outcomes) + 1
            points = range(first, max(writes, first) + NOBODY_DIES)
            assert points[-1] <= 3 * writes + 2 * AT_ONCE, "a change takes a bounded number of writes"
            outcomes |= zip(points, pool.map(dies_after, points), strict=True)
    for k, (_, picture, twice) in outcomes.items():
        assert picture == expected, f"after the death after write {k}"
        assert twice == {}, f"born twice, after the death after write {k}"
    deaths = [k for k, (died, _, _) in outcomes.items() if died]
    # No run needs fewer than these; how many statuses it needs depends on timing.
    fewest = sum(not write.endswith("/status") for write in written)
    assert set(range(1, fewest + 1)) <= set(deaths), "every k was tried"
    assert name == "delete" or deaths, "it has something to write"


def dies(stage: Stage, pod: Pod) -> None:
    """Its only rank, as the monitor tells it."""
    stage.kubelet.tell(pod, state="Failed", rank_0="Dead", failures=[failure(rank=0)])


def a_death(stage: Stage) -> None:
    lowest = stage.replicas()[0]["metadata"]["name"]
    dies(stage, next(pod for pod in stage.pods() if pod["metadata"]["labels"]["enginehouse.dev/replica"] == lowest))


def a_scale_down(stage: Stage) -> None:
    stage.patch(spec={"replicas": 1})


def a_death_in_a_drain(stage: Stage) -> None:
    def lingers(pod: Pod) -> bool:
        dies(stage, pod)
        return False

    stage.kubelet.lingers = lingers
    a_scale_down(stage)


def a_second_death_in_the_drain_after_one(stage: Stage) -> None:
    (pod, *_) = stage.pods()
    one, other = failure(), failure(rank=0, pid=18)

    def lingers(pod: Pod) -> bool:
        stage.kubelet.tell(pod, state="Failed", rank_0="Dead", rank_1="Dead", failures=[one, other])
        return False

    stage.kubelet.lingers = lingers
    stage.kubelet.tell(pod, rank_1="Dead", failures=[one])


ENDINGS: dict[str, tuple[Raw, Callable[[Stage], None], list[str], int]] = {
    "a death": ({"replicas": 2}, a_death, ["0/2", "1/1"], 1),
    "a planned scale-down": ({"replicas": 2}, a_scale_down, ["0/1", "1/1 ended"], 0),
    "a death in a drain": ({"replicas": 2}, a_death_in_a_drain, ["0/1", "1/1 ended"], 0),
    "a second death": ({"executor": "Simulated", "parallelism": {"data": 2}}, a_second_death_in_the_drain_after_one, ["0/2"], 1),
}
"""The engine, what happens to it while no operator is there, the replicas afterwards, and the restarts that are told then."""
MOST_LIVES = 60


def places(stage: Stage) -> list[str]:
    return [f"{raw['spec']['index']}/{raw['spec']['epoch']}{' ended' * ('end' in raw['spec'])}" for raw in stage.replicas()]


def one_write_per_life(stage: Stage, goal: Callable[[], bool]) -> int:
    """How many operators died until one had nothing left to write."""
    for lives in range(MOST_LIVES):
        mortal = stage.operator(die_after=1)
        stage.until(lambda mortal=mortal: mortal.exit_code is not None or goal(), saying="the operator dies, or all is done")
        if mortal.exit_code is None:
            stage.until_settled(lambda mortal=mortal: mortal.exit_code is not None or goal())
        if mortal.exit_code is None:
            return lives
        assert mortal.exit_code == DIED_ON_PURPOSE
    raise AssertionError(f"{MOST_LIVES} operators died and it is not done: {stage.writes()}")


@pytest.mark.parametrize("name", ENDINGS)
def test_an_ending_is_written_once_also_by_operators_that_die_after_each_write(name: str, new_stage: NewStage) -> None:
    spec, happens, replicas, restarts = ENDINGS[name]

    def outcome(*, mortal: bool) -> tuple[dict[str, Any], int]:
        with new_stage() as stage:
            is_ready = is_settled(stage, sum("ended" not in place for place in replicas))

            def goal() -> bool:
                return places(stage) == replicas and stage.engine()["status"]["restarts"] == restarts and is_ready()

            first = stage.operator()
            stage.apply(**spec)
            stage.until_settled(is_settled(stage, spec.get("replicas", 1)))
            first.kill()
            happens(stage)
            if mortal:
                assert one_write_per_life(stage, goal) > 3, "an ending takes some writes"
            else:
                stage.operator()
                stage.until_settled(goal)
            assert set(stage.births().values()) == {1}
            return stage.picture(), stage.writes().count("patch enginereplicas/")

    with ThreadPoolExecutor(2) as pool:
        (expected, ends), (found, ends_of_mortals) = pool.map(lambda mortal: outcome(mortal=mortal), (False, True))
    assert (ends, ends_of_mortals) == (1, 1)
    assert found == expected
