"""What Flux, Helm (kstatus) and Argo CD say of an engine at every stage of its life: their own code on the operator's statuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from world import World, engine_spec, settled

import crd_schema
import gitops_tools
from enginehouse_operator import api, reasons
from enginehouse_operator.plan_engine import EnginePlan
from enginehouse_operator.pod_state import Problem
from enginehouse_operator.status import engine_status

# They need no API server; the tools are built with the programs of one.
pytestmark = pytest.mark.api

ARGOCD_CM = Path(__file__).parents[3] / "examples" / "gitops" / "argocd" / "argocd-cm.yaml"
HEALTH = "resource.customizations.health.enginehouse.dev_InferenceEngine"
Raw = dict[str, Any]
TWO_RANKS = api.Parallelism(data=2)
OTHER_MODEL = api.Model(uri="hf://a/c")


def engine(world: World, *problems: Problem, readable: bool = True) -> Raw:
    """The object after a pass that did nothing."""
    plan = world.plans()[0] if readable else EnginePlan()
    seen = tuple(world.replicas.values())
    spec = world.spec if readable else None
    status = engine_status(world.engine, spec, seen, plan=plan, problems=problems, endpoint="http://e", now=world.now)
    world.engine = msgspec.structs.replace(world.engine, status=status)
    return stored(status)


def stored(status: Raw, **metadata: Any) -> Raw:
    named = {"name": "e", "namespace": "n", "generation": 1, **metadata}
    return {"apiVersion": "enginehouse.dev/v1alpha1", "kind": "InferenceEngine", "metadata": named, "status": status}


def changed(world: World, **changes: Any) -> World:
    world.spec = msgspec.structs.replace(world.spec, **changes)
    return world


def created() -> Raw:
    """As the API server gives it before the operator's first visit."""
    root = crd_schema.schema(crd_schema.kinds()["InferenceEngine"])
    return stored(root["properties"]["status"].get("default", {}))


def first_visit() -> Raw:
    return engine(World(engine_spec()))


def pods_start() -> Raw:
    world = World(engine_spec())
    world.one_pass()
    world.one_pass()
    return engine(world)


def held_up(reason: str) -> Raw:
    """By what its pod waits for."""
    world = World(engine_spec())
    world.one_pass()
    world.one_pass()
    world.change_member(world.live[0].members[0].name, problem=Problem(reason=reason, message="m"))
    return engine(world)


def unschedulable() -> Raw:
    return held_up(reasons.UNSCHEDULABLE)


def secret_missing() -> Raw:
    return held_up(reasons.SECRET_NOT_FOUND)


def quota_spent() -> Raw:
    """No pod was made."""
    world = World(engine_spec())
    world.one_pass()
    return engine(world, Problem(reason=reasons.QUOTA_EXCEEDED, message="m"))


def ready() -> Raw:
    return engine(settled(replicas=2))


def ready_without_a_monitor() -> Raw:
    world = settled()
    problem = Problem(reason=reasons.MONITOR_DOWN, message="m", is_harmless=True)
    world.change_member(world.live[0].members[0].name, problem=problem)
    return engine(world)


def changed_and_not_seen() -> Raw:
    return stored(ready()["status"], generation=2)


def rolling_out() -> Raw:
    return engine(changed(settled(replicas=2), model=OTHER_MODEL))


def scaling_up() -> Raw:
    return engine(changed(settled(), replicas=2))


def scaling_down() -> Raw:
    return engine(changed(settled(replicas=2), replicas=1))


def rank_restarting() -> Raw:
    world = settled(parallelism=TWO_RANKS)
    world.rank_dies(world.name_of(0, 1), 1, state="Restarting")
    return engine(world)


def rank_dead() -> Raw:
    world = settled(parallelism=TWO_RANKS)
    world.rank_dies(world.name_of(0, 1), 1)
    return engine(world)


def replica_dead() -> Raw:
    world = settled(replicas=2)
    world.kill(world.name_of(0, 1))
    world.one_pass()
    return engine(world)


def restart_delayed() -> Raw:
    world = settled()
    for epoch in (1, 2):
        world.kill(world.name_of(0, epoch))
        for _ in range(4):
            world.one_pass()
            world.tick()
    return engine(world)


def budget_spent() -> Raw:
    world = settled(replicas=2, restart=api.Restart(max_restarts=0))
    world.kill(world.name_of(0, 1))
    world.settle()
    return engine(world)


def context_too_small() -> Raw:
    world = settled()
    world.kill(world.name_of(0, 1), "ContextTooSmall")
    world.settle()
    return engine(world)


def template_invalid() -> Raw:
    problem = Problem(reason=reasons.TEMPLATE_INVALID, message="spec.template.spec.hostPID: refused", wants_person=True)
    return engine(World(engine_spec()), problem, readable=False)


def template_invalid_while_it_serves() -> Raw:
    problem = Problem(reason=reasons.TEMPLATE_INVALID, message="spec.template.spec.hostPID: refused", wants_person=True)
    return engine(settled(), problem, readable=False)


def suspending() -> Raw:
    world = changed(settled(), suspend=True)
    assert world.plans()[1], "it is still to be ended"
    return engine(world)


def suspended() -> Raw:
    world = changed(settled(), suspend=True)
    world.settle()
    return engine(world)


def resumed() -> Raw:
    world = changed(settled(), suspend=True)
    world.settle()
    return engine(changed(world, suspend=False))


def zero_replicas() -> Raw:
    world = changed(settled(), replicas=0)
    world.settle()
    return engine(world)


def being_deleted() -> Raw:
    return stored(ready()["status"], deletionTimestamp="2026-01-01T00:00:00Z")


STAGES: dict[Callable[[], Raw], tuple[str, str]] = {
    created: ("InProgress", "Progressing"),
    first_visit: ("InProgress", "Progressing"),
    pods_start: ("InProgress", "Progressing"),
    unschedulable: ("InProgress", "Progressing"),
    secret_missing: ("InProgress", "Progressing"),
    quota_spent: ("InProgress", "Progressing"),
    ready: ("Current", "Healthy"),
    ready_without_a_monitor: ("Current", "Healthy"),
    changed_and_not_seen: ("InProgress", "Progressing"),
    rolling_out: ("InProgress", "Progressing"),
    scaling_up: ("InProgress", "Progressing"),
    scaling_down: ("InProgress", "Progressing"),
    rank_restarting: ("InProgress", "Progressing"),
    rank_dead: ("InProgress", "Progressing"),
    replica_dead: ("InProgress", "Progressing"),
    restart_delayed: ("InProgress", "Progressing"),
    budget_spent: ("Failed", "Degraded"),
    context_too_small: ("Failed", "Degraded"),
    template_invalid: ("Failed", "Degraded"),
    template_invalid_while_it_serves: ("Failed", "Degraded"),
    suspending: ("InProgress", "Progressing"),
    suspended: ("Current", "Suspended"),
    resumed: ("InProgress", "Progressing"),
    zero_replicas: ("Current", "Healthy"),
}


@pytest.fixture(scope="module")
def health(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script that Argo CD finds in its ConfigMap."""
    script = tmp_path_factory.mktemp("argocd") / "health.lua"
    script.write_text(yaml.safe_load(ARGOCD_CM.read_text())["data"][HEALTH])
    return script


@pytest.fixture(scope="module")
def objects() -> dict[str, Raw]:
    return {stage.__name__: stage() for stage in STAGES}


def test_kstatus_says_how_it_goes_at_every_stage(objects: dict[str, Raw]) -> None:
    found = gitops_tools.kstatus(objects.values())
    assert {name: verdict.status for name, verdict in zip(objects, found, strict=True)} == {
        stage.__name__: wanted for stage, (wanted, _) in STAGES.items()
    }


def test_argo_cd_says_how_it_goes_at_every_stage(objects: dict[str, Raw], health: Path) -> None:
    found = gitops_tools.argocd_health(objects.values(), script=health)
    assert {name: verdict.status for name, verdict in zip(objects, found, strict=True)} == {
        stage.__name__: wanted for stage, (_, wanted) in STAGES.items()
    }


def test_both_pass_on_the_words_of_what_stopped_it(objects: dict[str, Raw], health: Path) -> None:
    stalled = objects["budget_spent"]
    (kstatus,) = gitops_tools.kstatus([stalled])
    (argocd,) = gitops_tools.argocd_health([stalled], script=health)
    assert "enginehouse.dev/resume-after=" in kstatus.message
    assert argocd.message == f"{reasons.RESTART_BUDGET_SPENT}: {kstatus.message}"


def test_an_engine_that_is_being_deleted_is_terminating() -> None:
    """Argo CD says Progressing of whatever is being deleted, before it asks a script."""
    (found,) = gitops_tools.kstatus([being_deleted()])
    assert found.status == "Terminating"
