"""The one operator is stopped (SIGTERM) and started anew, in every phase of an engine's life: the engine does not notice.

A phase is held by the script of the node, so that it would last for ever: the next operator finds it as it was, and writes nothing.
Then the phase is let go, and the world ends as it does under an operator that was never stopped, with nothing made twice.
Not done here: operators that are killed between two writes (`test_crash.py`), a second one that stands by (`test_rest.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from scripted_kubelet import failure, now, serve
from settled_world import is_deleted, is_settled
from stage import GROUP, VERSION, Raw, Stage

pytestmark = pytest.mark.api

SPREAD: Raw = {"executor": "Simulated", "parallelism": {"data": 2, "workersPerMember": 1}}
"""A leader with rank 0's worker, and a member with rank 1's."""
TWO_RANKS: Raw = {"executor": "Simulated", "parallelism": {"data": 2}}
NewStage = Callable[[], AbstractContextManager[Stage]]


def serving(stage: Stage, **spec: Any) -> None:
    stage.apply(**spec)
    stage.until_condition("Ready", "True", "AllReplicasServe")


def just_created(stage: Stage) -> None:
    stage.apply(replicas=2)
    stage.until(stage.replicas, saying="it has begun")


def pending(stage: Stage) -> None:
    stage.kubelet.fate = lambda _: "hold"
    stage.apply(**SPREAD)
    stage.until(lambda: len(stage.pods()) == 2, saying="both pods wait for a node")


def loading(stage: Stage) -> None:
    stage.kubelet.fate = lambda _: "load"
    stage.apply(**SPREAD)
    stage.until(lambda: [pod["status"]["phase"] for pod in stage.pods()] == ["Running"] * 2, saying="both pods run")
    stage.until_condition("Ready", "False")


def ready(stage: Stage) -> None:
    serving(stage, **SPREAD, replicas=2)


def a_rank_starts_again(stage: Stage) -> None:
    serving(stage, **TWO_RANKS)
    (pod,) = stage.pods()
    stage.kubelet.tell(pod, rank_1="Restarting", incarnation=2, failures=[failure()])
    stage.until(lambda: stage.engine()["status"]["restarts"] == 1, saying="it is counted")


def the_rank_serves(stage: Stage) -> None:
    (pod,) = stage.pods()
    stage.kubelet.tell(pod, incarnation=2, failures=[failure()])


def a_rank_is_dead(stage: Stage) -> None:
    """Its replica serves on, since nothing may come instead."""
    serving(stage, **TWO_RANKS, restart={"maxRestarts": 0})
    (pod,) = stage.pods()
    stage.kubelet.tell(pod, rank_1="Dead", failures=[failure(detectedTime=now())])
    stage.until_condition("Ready", "False")


def all_is_dead(stage: Stage) -> None:
    (pod,) = stage.pods()
    stage.kubelet.tell(pod, state="Failed", rank_0="Dead", failures=[failure(rank=0, detectedTime=now())])


def stalled(stage: Stage) -> None:
    serving(stage, restart={"maxRestarts": 0})
    all_is_dead(stage)
    stage.until_condition("Stalled", "True", "RestartBudgetSpent")
    stage.until(lambda: not stage.pods(), saying="no pod is left")


def a_restart_more(stage: Stage) -> None:
    stage.patch(spec={"restart": {"maxRestarts": 1}})


def draining(stage: Stage) -> None:
    """What is left of a dead replica, beside its successor."""
    serving(stage)
    stage.kubelet.lingers = lambda _: True
    all_is_dead(stage)
    stage.until(lambda: len(stage.pods()) == 2, saying="a successor has its pod")
    stage.until_condition("Ready", "True")


def scaling_up(stage: Stage) -> None:
    serving(stage)
    stage.kubelet.fate = lambda _: "hold"
    stage.patch(spec={"replicas": 3})
    stage.until(lambda: len(stage.pods()) == 3, saying="two pods wait for a node")


def scaling_down(stage: Stage) -> None:
    serving(stage, replicas=3)
    stage.kubelet.lingers = lambda _: True
    stage.patch(spec={"replicas": 1})
    stage.until(lambda: sum("deletionTimestamp" in pod["metadata"] for pod in stage.pods()) == 2, saying="two replicas drain")


def a_rollout(stage: Stage) -> None:
    serving(stage, replicas=2)
    old = {pod["metadata"]["uid"] for pod in stage.pods()}
    stage.kubelet.fate = lambda pod: "serve" if pod["metadata"]["uid"] in old else "hold"
    stage.patch(spec={"context": {"maxLength": 4096}})
    stage.until(lambda: len(stage.pods()) == 2 and not all_of(stage, old), saying="the first successor waits for a node")


def all_of(stage: Stage, uids: set[str]) -> bool:
    return {pod["metadata"]["uid"] for pod in stage.pods()} == uids


def ranks_leave(stage: Stage) -> None:
    serving(stage, executor="Ray", parallelism={"data": 3})
    stage.kubelet.has_drained = lambda _: False
    stage.patch(spec={"parallelism": {"data": 1}})

    def drain() -> bool:
        rows = stage.replicas()[0]["status"]["members"]
        return [rank["state"] for row in rows if "placement" in row for rank in row["ranks"]] == ["Serving", "Draining", "Draining"]

    stage.until(drain, saying="two ranks drain")


def suspending(stage: Stage) -> None:
    serving(stage, **SPREAD)
    stage.kubelet.lingers = lambda _: True
    stage.patch(spec={"suspend": True})
    stage.until(lambda: all("deletionTimestamp" in pod["metadata"] for pod in stage.pods()), saying="all members drain")


def suspended(stage: Stage) -> None:
    suspending(stage)
    stage.kubelet.lingers = lambda _: False
    stage.until(lambda: not stage.pods(), saying="no pod is left")


def resume(stage: Stage) -> None:
    stage.patch(spec={"suspend": False})


def deleting(stage: Stage) -> None:
    """In the foreground: else there is no engine any more that an operator would look at."""
    serving(stage, **SPREAD)
    stage.kubelet.lingers = lambda _: True
    stage._objects.delete_namespaced_custom_object(
        GROUP, VERSION, stage.namespace, "inferenceengines", "one", propagation_policy="Foreground"
    )
    stage.until(lambda: all("deletionTimestamp" in pod["metadata"] for pod in stage.pods()), saying="all members go")


def let_go(_: Stage) -> None:
    """The node does what it has to: nothing more is needed."""


@dataclass(frozen=True)
class Phase:
    arrive: Callable[[Stage], None]
    go_on: Callable[[Stage], None] = let_go
    replicas: int | None = 1
    """Afterwards; None = the engine is deleted."""
    lasts: bool = True
    """Until :attr:`go_on`."""


PHASES: dict[str, Phase] = {
    "just created": Phase(just_created, replicas=2, lasts=False),
    "pods pending": Phase(pending),
    "loading": Phase(loading),
    "ready": Phase(ready, replicas=2),
    "a rank starts again": Phase(a_rank_starts_again, the_rank_serves),
    "serving with a rank dead": Phase(a_rank_is_dead, a_restart_more),
    "draining after a death": Phase(draining),
    "stalled": Phase(stalled, a_restart_more),
    "scaling up": Phase(scaling_up, replicas=3),
    "scaling down": Phase(scaling_down),
    "rollout under way": Phase(a_rollout, replicas=2),
    "ranks leave": Phase(ranks_leave),
    "suspending": Phase(suspending, resume),
    "suspended": Phase(suspended, resume),
    "deleting": Phase(deleting, replicas=None),
}


def stopped_and_started(stage: Stage, stop: Callable[[], int]) -> None:
    """Up to the next operator's first look at everything."""
    assert stop() == 0
    reads = stage.reads()
    stage.operator(takes_lease=False)
    stage.until(lambda: stage.log.count("works on") == 2, saying="the next one leads")
    stage.until(lambda: stage.reads() > reads, saying="it has looked")


def life(stage: Stage, phase: Phase, *, stops: bool) -> Raw:
    """The world afterwards."""
    operator = stage.operator()
    phase.arrive(stage)
    if phase.lasts:
        stage.until_settled(lambda: True)
    before, writes = stage.versions(), len(stage.writes())
    if stops:
        stopped_and_started(stage, operator.terminate)
    if phase.lasts:
        stage.until_settled(lambda: True)
        assert stage.writes()[writes:] == []
        assert stage.versions() == before, "the same objects, untouched"
    stage.kubelet.fate, stage.kubelet.lingers, stage.kubelet.has_drained = serve, lambda _: False, lambda _: True
    phase.go_on(stage)
    stage.until_settled(is_deleted(stage) if phase.replicas is None else is_settled(stage, phase.replicas))
    assert set(stage.births().values()) == {1}, "nothing is made twice"
    return stage.picture()


@pytest.mark.parametrize("name", PHASES)
def test_an_operator_that_is_stopped_and_started_anew_changes_nothing_in_any_phase(name: str, new_stage: NewStage) -> None:
    def outcome(*, stops: bool) -> Raw:
        with new_stage() as stage:
            return life(stage, PHASES[name], stops=stops)

    with ThreadPoolExecutor(2) as pool:
        expected, found = pool.map(lambda stops: outcome(stops=stops), (False, True))
    assert found == expected
