"""The operator at rest and after a change of operator: no writes, little memory, no pod touched."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from stage import Stage

pytestmark = pytest.mark.api

MOST_RESIDENT_BYTES = 120 * 1024 * 1024
REST_SECONDS = 60


@pytest.mark.slow  # a minute; on the Kubernetes of `make test` the minute of tests/cluster/test_settled_world.py shows it
def test_two_settled_engines_cause_no_write_in_a_minute_and_cost_little_memory(stage: Stage) -> None:
    operator = stage.operator()
    for name in ("one", "two"):
        stage.apply(name, replicas=2)
    for name in ("one", "two"):
        stage.until_condition("Ready", "True", name=name)
    stage.until_settled(lambda: True)
    before = len(stage.writes())
    time.sleep(REST_SECONDS)  # what is measured is that nothing happens while time passes
    assert stage.writes()[before:] == []
    assert operator.resident_bytes < MOST_RESIDENT_BYTES
    assert operator.terminate() == 0


def test_each_object_of_an_engine_of_two_pods_is_written_once(stage: Stage) -> None:
    stage.operator()
    stage.apply(executor="Simulated", parallelism={"data": 2, "workersPerMember": 1})
    stage.until_condition("Ready", "True")
    stage.until_settled(lambda: True)
    written = Counter(write.removesuffix("/") for write in stage.writes() if not write.endswith("/status"))
    events = written.pop("create events")
    assert written == {
        "create enginereplicas": 1,
        "create pods": 2,
        "patch poddisruptionbudgets": 1,
        "patch rolebindings": 1,
        "patch roles": 1,
        "patch serviceaccounts": 1,
        "patch services": 2,
    }
    assert events == 1, "that there is a replica"


@pytest.mark.parametrize("image", ["engine:1", "engine:2"], ids=["the same", "another version"])
def test_another_operator_touches_no_pod_and_writes_nothing(stage: Stage, image: str) -> None:
    first = stage.operator()
    stage.apply(replicas=2)
    stage.until_condition("Ready", "True")
    stage.until_settled(lambda: True)
    pods = {pod["metadata"]["uid"]: pod["metadata"]["resourceVersion"] for pod in stage.pods()}
    first.kill()
    before = len(stage.writes())
    stage.operator(engine_image=image)
    stage.until(lambda: stage.log.count("works on") == 2, saying="the second one leads")
    stage.until_settled(lambda: True)
    assert stage.writes()[before:] == []
    assert {pod["metadata"]["uid"]: pod["metadata"]["resourceVersion"] for pod in stage.pods()} == pods
    stage.patch(spec={"replicas": 3})
    stage.until_condition("Ready", "True")
    images = sorted(container["image"] for pod in stage.pods() for container in pod["spec"]["containers"])
    assert images == sorted(["engine:1", "engine:1", image])


def test_a_second_operator_stands_by_and_takes_over_when_the_first_ends(stage: Stage) -> None:
    first = stage.operator()
    stage.apply()
    stage.until_condition("Ready", "True")
    second = stage.operator(takes_lease=False)
    stage.until(lambda: "standing by" in stage.log, saying="the second stands by")
    assert first.terminate() == 0
    stage.until(lambda: stage.log.count("works on") == 2, saying="the second one leads")
    stage.patch(spec={"replicas": 2})
    stage.until_condition("Ready", "True")
    assert second.exit_code is None


def test_a_death_after_the_leader_was_killed_is_answered_by_the_next_one_when_the_lease_is_old(stage: Stage) -> None:
    first = stage.operator()
    stage.apply()
    stage.until_condition("Ready", "True")
    (victim,) = (pod["metadata"]["uid"] for pod in stage.pods())
    stage.operator(takes_lease=False)
    stage.until(lambda: "standing by" in stage.log, saying="the second stands by")
    first.kill()
    stage.kubelet.fate = lambda pod: "die" if pod["metadata"]["uid"] == victim else "serve"
    stage.until(lambda: stage.log.count("works on") == 2, saying="the second one leads")
    stage.until(lambda: stage.engine()["status"].get("restarts") == 1, saying="the death is told")
    stage.until_condition("Ready", "True")
    stage.until(lambda: [raw["spec"]["epoch"] for raw in stage.replicas()] == [2], saying="one successor, and nothing else")
