"""The operator dies after its k-th write, for every k, in every change an engine can undergo: the world ends the same.

Reference: the same change without a death. Same = the same picture (names by place; no UIDs, times, addresses), and no replica
and no member created more often than once. The operator dies by os._exit right after the API server acknowledged the write; a
new process goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
from operator_zygote import DIED_ON_PURPOSE
from stage import Stage

pytestmark = pytest.mark.api

REPLICAS = 2
AT_ONCE = 4
LEADS = "works on"
SPARE = 4
"""How many writes a change may take fewer than the reference did: statuses in between depend on timing."""


def is_settled(stage: Stage, replicas: int) -> Callable[[], bool]:
    def settled() -> bool:
        engine = stage.engine()
        status = engine.get("status", {})
        ready = [found for found in status.get("conditions", ()) if found["type"] == "Ready"]
        return bool(
            status.get("observedGeneration") == engine["metadata"]["generation"]
            and [found["status"] for found in ready] == ["True"]
            and status["readyReplicas"] == status["replicas"] == replicas
            and len(stage.pods()) == replicas * members(engine)
            and ended_in_order(stage)
            and not stage.garbage()
        )

    return settled


def members(engine: dict[str, Any]) -> int:
    shape = engine["spec"]["parallelism"]
    workers = shape["data"] * shape["tensor"] * shape["pipeline"]
    return int(workers // shape.get("workersPerMember", workers))


def ended_in_order(stage: Stage) -> bool:
    """Every replica that was asked to end has, and is gone if another holds its index."""
    replicas = stage.replicas()
    live = {raw["spec"]["index"] for raw in replicas if "end" not in raw["spec"]}
    ended = [raw for raw in replicas if "end" in raw["spec"]]
    over = [
        raw
        for raw in ended
        for found in raw.get("status", {}).get("conditions", ())
        if (found["type"], found["status"]) == ("Ended", "True")
    ]
    return len(over) == len(ended) and live.isdisjoint(raw["spec"]["index"] for raw in ended)


def is_deleted(stage: Stage) -> Callable[[], bool]:
    return lambda: stage.picture()["engines"] == {} and not stage.pods() and not stage.replicas()


NewStage = Callable[[], AbstractContextManager[Stage]]
Change = tuple[dict[str, Any] | None, int | None]
"""The spec to merge (None = delete the engine) and the replicas afterwards (None = none, deleted)."""

CHANGES: dict[str, tuple[int, Change]] = {
    "apply": (-1, ({"replicas": REPLICAS}, REPLICAS)),
    "apply, with members": (-1, ({"executor": "Simulated", "parallelism": {"data": 3, "workersPerMember": 1}}, 1)),
    "scale up": (1, ({"replicas": REPLICAS}, REPLICAS)),
    "scale down": (REPLICAS, ({"replicas": 1}, 1)),
    "rollout": (REPLICAS, ({"context": {"maxLength": 4096}}, REPLICAS)),
    "suspend": (REPLICAS, ({"suspend": True}, 0)),
    "delete": (REPLICAS, (None, None)),
}


def change(stage: Stage, before: int, what: Change, *, die_after: int | None) -> tuple[bool, int]:
    """Bring the engine to its start, change it while an operator that dies is at work, and let another finish.

    Whether it died, and how many writes the change took."""
    if before >= 0:
        first = stage.operator()
        stage.apply(replicas=before)
        stage.until_settled(is_settled(stage, before))
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
    return died, len(stage.writes()) - done


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CHANGES)
def test_the_operator_may_die_after_any_write(name: str, new_stage: NewStage) -> None:
    before, what = CHANGES[name]
    with new_stage() as stage:
        _, writes = change(stage, before, what, die_after=None)
        expected = stage.picture()

    def dies_after(k: int) -> tuple[bool, dict[str, Any], dict[str, int]]:
        with new_stage() as stage:
            died, _ = change(stage, before, what, die_after=k)
            return died, stage.picture(), {birth: times for birth, times in stage.births().items() if times > 1}

    outcomes: dict[int, tuple[bool, dict[str, Any], dict[str, int]]] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # Up to a run that ends before its k-th write. How many writes a change takes depends on timing: statuses in between.
        while not outcomes or any(died for died, _, _ in list(outcomes.values())[-AT_ONCE:]):
            first = len(outcomes) + 1
            points = range(first, max(writes, first) + AT_ONCE)
            assert points[-1] <= 3 * writes + 2 * AT_ONCE, "a change takes a bounded number of writes"
            outcomes |= zip(points, pool.map(dies_after, points), strict=True)
    for k, (_, picture, twice) in outcomes.items():
        assert picture == expected, f"after the death after write {k}"
        assert twice == {}, f"born twice, after the death after write {k}"
    deaths = [k for k, (died, _, _) in outcomes.items() if died]
    # A run may need a status or two fewer than another, so near the last write not every k is reached.
    assert set(range(1, writes - SPARE + 1)) <= set(deaths), "every k was tried"
    assert name == "delete" or deaths, "it has something to write"
