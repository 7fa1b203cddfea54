"""What people do to the operator's objects by hand, with the real garbage collector cleaning up behind them."""

from __future__ import annotations

import pytest
from stage import GROUP, VERSION, Stage

pytestmark = [pytest.mark.api]


def serving(stage: Stage) -> None:
    stage.operator()
    stage.apply(replicas=2)
    stage.until_condition("Ready", "True")


def whole(stage: Stage) -> bool:
    """Ready, and everything that there is belongs to something that there is."""
    owners = {raw["metadata"]["uid"] for raw in [*stage.replicas(), stage.engine()]}
    owned = [owner["uid"] for raw in stage._everything() for owner in raw["metadata"].get("ownerReferences", ())]
    ready = stage.condition("Ready")
    return ready is not None and ready["status"] == "True" and set(owned) <= owners and len(stage.pods()) == 2


@pytest.mark.parametrize("how", ["Background", "Foreground"])
def test_a_replica_deleted_by_hand_is_made_again(stage: Stage, how: str) -> None:
    serving(stage)
    victim = stage.replicas()[0]["metadata"]
    stage._objects.delete_namespaced_custom_object(
        GROUP, VERSION, stage.namespace, "enginereplicas", victim["name"], propagation_policy=how
    )
    stage.until(lambda: victim["uid"] not in {raw["metadata"]["uid"] for raw in stage.replicas()}, saying="the deleted one is gone")
    stage.until_settled(lambda: whole(stage))
    assert [raw["spec"]["index"] for raw in stage.replicas()] == [0, 1]


@pytest.mark.parametrize("grace", [0, 30])
def test_a_pod_deleted_by_hand_gets_a_successor_with_its_replica(stage: Stage, grace: int) -> None:
    serving(stage)
    victim = stage.pods()[0]["metadata"]
    stage._core.delete_namespaced_pod(victim["name"], stage.namespace, grace_period_seconds=grace)
    stage.until_settled(lambda: whole(stage) and victim["uid"] not in {pod["metadata"]["uid"] for pod in stage.pods()})
    assert sorted(raw["spec"]["epoch"] for raw in stage.replicas()) == [1, 2]


def test_an_engine_made_again_under_its_name_starts_anew(stage: Stage) -> None:
    serving(stage)
    before = {raw["metadata"]["uid"] for raw in stage._everything()}
    stage.delete()
    stage.until(lambda: stage.list(f"/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/inferenceengines") == [], saying="gone")
    stage.apply(replicas=2)
    stage.until_settled(lambda: whole(stage))
    after = {raw["metadata"]["uid"] for raw in stage._everything() if raw["metadata"].get("ownerReferences")}
    assert not before & after
