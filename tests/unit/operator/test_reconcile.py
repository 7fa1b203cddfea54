"""Whole passes against an API server in memory: what is written, in which order, and what a refusal leads to."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

import pytest
from memory_api import MemoryApi
from memory_stage import NOW, PODS, REPLICAS, Stage, leader_says

from enginehouse_operator import metrics, names, reasons
from enginehouse_operator.events import WARNING, Events
from enginehouse_operator.kubernetes_client import CLAIMS, ApiError, Conflict, Forbidden, Kind, Unavailable


@pytest.fixture
async def serving() -> Stage:
    stage = Stage()
    await stage.settle()
    stage.serve()
    await stage.settle()
    assert stage.condition("Ready") == ("True", reasons.ALL_REPLICAS_SERVE)
    stage.api.written()
    return stage


async def test_a_settled_world_is_not_written(serving: Stage) -> None:
    assert (await serving.one_pass()).after_seconds == 600
    assert serving.api.written() == []


async def test_a_succeeded_replica_gets_no_status_after_its_deletion(serving: Stage) -> None:
    (old,) = serving.api.of(REPLICAS)
    serving.change("inferenceengines", "e", spec={"context": {"maxLength": 64}}, metadata={"generation": 2})
    await serving.settle()  # raises when a status is written to what is no more
    assert (REPLICAS, old["metadata"]["name"]) not in serving.api.objects
    assert len(serving.api.of(REPLICAS)) == 1


@pytest.mark.parametrize("plural", [REPLICAS, "inferenceengines"])
async def test_an_object_that_vanishes_during_the_pass_is_no_failure_of_the_api(serving: Stage, plural: str) -> None:
    def vanish(verb: str, kind: str, name: str) -> None:
        if (verb, kind) == ("status", plural):
            serving.api.objects.pop((kind, name), None)

    for pod in serving.api.of(PODS):
        serving.change(PODS, pod["metadata"]["name"], status={"conditions": []})
    serving.api.before_write = vanish
    result = await serving.one_pass()
    assert ("status", plural) in [request[:2] for request in serving.api.written()]
    assert result.failed, "come again, later each time"


async def test_an_engine_that_is_made_anew_during_the_pass_gets_nothing_of_the_old_ones_status(serving: Stage) -> None:
    def make_anew(verb: str, kind: str, name: str) -> None:
        if (verb, kind) == ("status", "inferenceengines"):
            old = serving.api.objects[kind, name]
            serving.api.put(kind, {key: old[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": name}})

    for pod in serving.api.of(PODS):
        serving.change(PODS, pod["metadata"]["name"], status={"conditions": []})
    serving.api.before_write = make_anew
    result = await serving.one_pass()
    assert serving.api.objects["inferenceengines", "e"]["metadata"]["uid"] != serving.engine["metadata"]["uid"]
    assert "status" not in serving.api.objects["inferenceengines", "e"]
    assert result.failed, "come again"


async def test_an_engine_that_is_being_deleted_is_read_again_since_its_end_may_go_unheard(serving: Stage) -> None:
    serving.change("inferenceengines", "e", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["somebody/else"]})
    assert (await serving.one_pass()).after_seconds == 600
    del serving.api.objects["inferenceengines", "e"]
    assert (await serving.one_pass()).after_seconds is None
    assert not serving.cache.knows(("n", "e"))


async def test_what_an_apply_cannot_change_is_not_tried_again_at_once(serving: Stage) -> None:
    serving.change("services", "e", spec={"type": "NodePort"})

    apply = serving.api.apply

    async def in_vain(manifest: dict[str, Any]) -> dict[str, Any]:
        await apply(manifest)  # and a webhook has its own way with services
        serving.change("services", "e", spec={"type": "NodePort"})
        return serving.api.objects["services", "e"]

    serving.api.apply = in_vain
    assert (await serving.one_pass()).after_seconds == 600


async def test_a_foreign_port_and_owner_on_a_service_are_left_alone(serving: Stage) -> None:
    service = serving.api.objects["services", "e"]
    port = {"name": "extra", "port": 9999, "protocol": "TCP"}
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "x"}
    service["spec"]["ports"].insert(0, port)
    service["metadata"]["ownerReferences"].append(owner)
    await serving.one_pass()
    assert serving.api.written() == []


async def test_a_template_that_names_ten_thousand_claims_costs_a_pass_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [{"name": f"v-{number}", "persistentVolumeClaim": {"claimName": f"c-{number}"}} for number in range(10_000)]
    stage = Stage(template={"spec": {"volumes": named}})
    asked, get = [], stage.api.get

    async def counted(kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        asked.extend([name] if kind == CLAIMS else [])
        return await get(kind, namespace, name)

    monkeypatch.setattr(stage.api, "get", counted)
    await stage.one_pass()
    assert asked == ["c-0"]
    assert stage.condition("Ready") == ("False", reasons.CLAIM_NOT_FOUND)
    for volume in named:
        volume["persistentVolumeClaim"] |= {"claimName": "c-0"}
    stage.change("inferenceengines", "e", spec={"template": {"spec": {"volumes": named}}}, metadata={"generation": 2})
    stage.api.put(CLAIMS.plural, {"metadata": {"name": "c-0"}})
    asked.clear()
    await stage.one_pass()
    assert asked == ["c-0"]
    assert len(stage.api.of(REPLICAS)) == 1


async def test_a_role_with_more_rights_is_put_right(serving: Stage) -> None:
    (role,) = serving.api.of("roles")
    role["rules"].append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]})
    await serving.one_pass()
    assert ("apply", "roles", role["metadata"]["name"]) in serving.api.written()
    assert len(serving.api.of("roles")[0]["rules"]) == 2


async def test_a_replica_deleted_by_hand_gets_its_pod_only_when_the_rights_of_its_namesake_are_gone(serving: Stage) -> None:
    (old,) = serving.api.of(REPLICAS)
    name = old["metadata"]["name"]
    del serving.api.objects[REPLICAS, name]  # the garbage collector has not come yet
    await serving.settle()
    (new,) = serving.api.of(REPLICAS)
    assert new["metadata"]["name"] == name
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert all(pod["metadata"]["ownerReferences"][0]["uid"] == old["metadata"]["uid"] for pod in serving.api.of(PODS))
    assert serving.condition("Ready") == ("False", reasons.NAME_TAKEN)
    for key, raw in list(serving.api.objects.items()):
        if any(owner["uid"] == old["metadata"]["uid"] for owner in raw["metadata"].get("ownerReferences", ())):
            del serving.api.objects[key]
    await serving.settle()
    serving.serve()
    await serving.settle()
    assert serving.condition("Ready")[0] == "True"


RAY = {"executor": "Ray", "model": {"uri": "file:///m"}, "parallelism": {"data": 2}}


async def test_a_replica_of_ray_gets_one_token_before_its_first_pod_and_no_other() -> None:
    stage = Stage(**RAY)
    await stage.settle()
    written = [request for request in stage.api.written() if request[0] == "create" and request[1] in ("secrets", PODS)]
    assert [plural for _, plural, _ in written] == ["secrets", PODS, PODS]
    (secret,), (replica,) = stage.api.of("secrets"), stage.api.of(REPLICAS)
    assert secret["metadata"]["ownerReferences"][0]["uid"] == replica["metadata"]["uid"]
    assert len(base64.b64decode(secret["data"]["token"])) == 64
    stage.change("inferenceengines", "e", spec={"parallelism": {"data": 3}}, metadata={"generation": 2})
    await stage.settle()
    assert "secrets" not in {plural for _, plural, _ in stage.api.written()}
    assert len(stage.api.of(PODS)) == 3


async def test_a_pass_that_came_no_further_than_the_token_is_gone_on_from_with_the_same_token() -> None:
    stage = Stage(**RAY)
    stage.api.refuse = lambda verb, plural, _: Unavailable("x", status=0) if (verb, plural) == ("create", PODS) else None
    with pytest.raises(Unavailable):
        await stage.settle()
    (before,) = stage.api.of("secrets")
    stage.api.refuse = lambda *_: None
    await stage.settle()
    assert stage.api.of("secrets") == [before]
    assert len(stage.api.of(PODS)) == 2


async def test_no_leader_is_made_before_the_token_can_be() -> None:
    stage = Stage(**RAY)
    words = "exceeded quota: q, requested: count/secrets=1"
    stage.api.refuse = lambda _, plural, __: Forbidden("POST", status=403, message=words) if plural == "secrets" else None
    await stage.one_pass()
    await stage.one_pass()
    assert names.LEADER not in {pod["metadata"]["labels"][names.LABEL_ROLE] for pod in stage.api.of(PODS)}
    assert stage.condition("Ready") == ("False", reasons.QUOTA_EXCEEDED)


async def test_a_shortage_is_told_bundle_by_bundle_and_once_as_an_event_and_so_is_its_end() -> None:
    stage = Stage(**RAY)
    await stage.settle()
    assert stage.condition("PlacementReady") == ("Unknown", reasons.NOT_KNOWN)
    leader_says(stage, {0: "Serving", 1: "Pending"}, {1: "needs accelerator: 1, member 1 has not joined"}, waiting="Pending")
    await stage.one_pass()
    assert stage.condition("PlacementReady") == ("False", reasons.PLACEMENT_PENDING)
    assert stage.condition("Ready")[1] == reasons.SCALING, "every start looks like this"
    leader_says(stage, {0: "Serving", 1: "Pending"}, {1: "needs accelerator: 1, no node has it"})
    for _ in range(3):
        await stage.one_pass()
    assert stage.condition("PlacementReady") == ("False", reasons.PLACEMENT_LACKING)
    assert stage.condition("Ready") == ("False", reasons.PLACEMENT_LACKING)
    assert stage.condition("Available")[0] == "True", "the rest serves"
    told = next(event for event in stage.api.of("events") if event["reason"] == reasons.PLACEMENT_LACKING)
    assert "bundle 0 of rank 1 needs accelerator: 1, no node has it" in told["message"]
    leader_says(stage, {0: "Serving", 1: "Serving"})
    await stage.settle()
    assert stage.condition("PlacementReady") == ("True", reasons.PLACED)
    assert stage.condition("Ready") == ("True", reasons.ALL_REPLICAS_SERVE)
    events = [(event["type"], event["reason"]) for event in stage.api.of("events")]
    assert events == [("Normal", reasons.SCALE_UP), ("Warning", reasons.PLACEMENT_LACKING), ("Normal", reasons.PLACED)]


async def test_ranks_are_added_and_taken_away_without_a_successor_and_told_as_events() -> None:
    stage = Stage(**RAY)
    await stage.settle()
    leader_says(stage, {0: "Serving", 1: "Serving"})
    await stage.settle()
    (before,) = stage.api.of(REPLICAS)
    assert (before["spec"]["data"], before["spec"]["engine"]["parallelism"]) == (2, {"workersPerMember": 1})
    stage.change("inferenceengines", "e", spec={"parallelism": {"data": 3}}, metadata={"generation": 2})
    await stage.settle()
    assert stage.condition("Ready") == ("False", reasons.SCALING)
    leader_says(stage, {0: "Serving", 1: "Serving", 2: "Serving"})
    await stage.settle()
    assert stage.condition("Ready")[0] == "True"
    stage.change("inferenceengines", "e", spec={"parallelism": {"data": 1}}, metadata={"generation": 3})
    await stage.settle()
    leader_says(stage, {0: "Serving", 1: "Draining"})
    await stage.settle()
    assert len(stage.api.of(PODS)) == 2, "the highest is out, the next drains"
    leader_says(stage, {0: "Serving"})
    await stage.settle()
    (after,), (pod,) = stage.api.of(REPLICAS), stage.api.of(PODS)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert [row["name"] for row in after["status"]["members"]] == [pod["metadata"]["name"]], "rows go after their pods"
    assert (after["spec"]["data"], stage.condition("Ready")[0]) == (1, "True")
    told = [event for event in stage.api.of("events") if event["reason"] in (reasons.RANKS_ADDED, reasons.RANKS_REMOVED)]
    assert [event["reason"] for event in told] == [reasons.RANKS_ADDED, reasons.RANKS_REMOVED]
    stage.api.written()
    await stage.one_pass()
    assert stage.api.written() == []


async def test_a_number_of_ranks_is_written_for_the_row_that_was_read_and_no_other() -> None:
    stage = Stage(**RAY)
    await stage.settle()
    leader_says(stage, {0: "Serving", 1: "Serving"})
    await stage.settle()
    stage.change("inferenceengines", "e", spec={"parallelism": {"data": 1}}, metadata={"generation": 2})

    def meanwhile(verb: str, plural: str, name: str) -> None:
        """Another operator, which was thought dead, has told another number."""
        if (verb, plural) == ("merge", "enginereplicas"):
            stage.api.before_write = lambda *_: None
            stage.change(REPLICAS, name, spec={"data": 4}, metadata={"resourceVersion": "later"})

    stage.api.before_write = meanwhile
    await stage.one_pass()
    assert stage.api.of(REPLICAS)[0]["spec"]["data"] == 4
    await stage.settle()
    assert stage.api.of(REPLICAS)[0]["spec"]["data"] == 4, "its launcher may have heard of four, and is to show them first"


def pod_refusal(message: str) -> Any:
    def refuse(verb: str, plural: str, name: str) -> ApiError | None:
        return Forbidden("POST pods", status=403, message=message) if plural == PODS and verb in ("create", "dry-run") else None

    return refuse


@pytest.mark.parametrize(
    ("message", "ends"),
    [
        ('violates PodSecurity "restricted:latest": runAsNonRoot', False),
        ("[minimum memory usage per Container is 64Mi]", False),
        ("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1", True),  # ending the old one makes room
        ('error looking up service account n/default: serviceaccount "default" not found', True),
    ],
)
async def test_a_rollout_ends_nothing_when_its_pods_are_forbidden(serving: Stage, message: str, ends: bool) -> None:
    (old,) = serving.api.of(REPLICAS)
    serving.change("inferenceengines", "e", spec={"context": {"maxLength": 64}}, metadata={"generation": 2})
    serving.api.refuse = pod_refusal(message)
    await serving.one_pass()
    assert ("end" in serving.api.objects[REPLICAS, old["metadata"]["name"]]["spec"]) is ends
    if not ends:
        assert serving.condition("Ready") == ("False", reasons.FORBIDDEN)


def dies(stage: Stage, state: str = "Dead", *, incarnation: int = 1, failures: tuple[dict[str, Any], ...] = ()) -> str:
    """The only rank; of what stands in ``failures``. The name of its pod."""
    (pod,), (replica,) = stage.api.of(PODS), stage.api.of(REPLICAS)
    (told,), name = replica["status"]["members"], str(pod["metadata"]["name"])
    ranks = [told["ranks"][0] | {"state": state, "incarnation": incarnation}]
    written = {"manager": name, "subresource": "status", "time": "2026-01-01T01:00:00Z"}
    members = [told | {"ranks": ranks, "failures": list(failures)}]
    stage.change(REPLICAS, replica["metadata"]["name"], status={"members": members}, metadata={"managedFields": [written]})
    return name


@pytest.mark.parametrize("reason", ["healthy", "a pass that has more to do"])
async def test_a_leader_without_a_living_rank_leaves_service_in_the_first_write_of_the_next_pass(
    serving: Stage, reason: str
) -> None:
    if reason != "healthy":
        serving.change("inferenceengines", "e", spec={"replicas": 3, "service": {"port": 81}}, metadata={"generation": 2})
    pod = dies(serving)
    await serving.one_pass()
    assert serving.api.written()[0] == ("merge", PODS, pod), "before any dry run, service or replica"
    assert names.LABEL_SERVING not in serving.api.objects[PODS, pod]["metadata"]["labels"]
    assert "end" not in serving.api.of(REPLICAS)[0]["spec"], "of what is not known yet"
    await serving.settle()
    serving.api.written()
    await serving.one_pass()
    assert serving.api.written() == [], "and never comes back"


async def test_a_label_that_somebody_puts_back_on_a_dead_leader_comes_off_again(serving: Stage) -> None:
    pod = dies(serving)
    await serving.settle()
    serving.change(PODS, pod, metadata={"labels": {names.LABEL_SERVING: "true"}})
    await serving.one_pass()
    assert names.LABEL_SERVING not in serving.api.objects[PODS, pod]["metadata"]["labels"]


def failure(**changes: Any) -> dict[str, Any]:
    record = {"role": "engine-core", "rank": 0, "incarnation": 1, "pid": 17, "signal": 9, "class": "Signal"}
    return record | {"message": "line one\nline two", "detectedTime": "2026-01-01T00:59:00Z"} | changes


def told(stage: Stage) -> list[tuple[str, str]]:
    """Types and reasons of the Events, in their order."""
    return [(event["type"], event["reason"]) for event in stage.api.of("events")]


async def test_the_events_tell_one_line_for_each_death_and_each_successor_and_stalled(serving: Stage) -> None:
    assert told(serving) == [("Normal", reasons.SCALE_UP)], "not one for each member"
    dies(serving, "Restarting", incarnation=2, failures=(failure(),))
    for _ in range(3):
        await serving.one_pass()
    assert told(serving)[1:] == [("Warning", reasons.RANK_RESTARTING)]
    dies(serving, incarnation=2, failures=(failure(), failure(incarnation=2, pid=18)))
    await serving.settle()
    assert told(serving)[2:] == [("Warning", reasons.RANK_DEAD), ("Normal", reasons.SUCCESSOR)]
    messages = [event["message"] for event in serving.api.of("events")]
    assert not any("\n" in message for message in messages)
    assert all("signal 9: line two" in messages[number] for number in (1, 2))


async def test_the_same_death_some_time_later_is_another_event(serving: Stage) -> None:
    first, second = failure(), failure(incarnation=2, detectedTime="2026-01-01T00:59:30Z")
    dies(serving, "Restarting", incarnation=2, failures=(first,))
    await serving.one_pass()
    dies(serving, "Restarting", incarnation=3, failures=(first, second))
    for _ in range(3):
        await serving.one_pass()
    assert told(serving)[1:] == [("Warning", reasons.RANK_RESTARTING)] * 2
    assert len({event["message"] for event in serving.api.of("events")}) == 2, "the words of both deaths are the same"


async def test_what_is_so_again_after_an_hour_is_said_again() -> None:
    api, now = MemoryApi(), [NOW]
    about = {"apiVersion": names.API_VERSION, "kind": names.ENGINE_KIND, "metadata": {"name": "e", "namespace": "n", "uid": "u"}}
    events = Events(api, lambda: now[0])
    for minutes, is_said in ((0, True), (59, False), (61, True), (62, False)):
        now[0] = NOW + timedelta(minutes=minutes)
        api.objects.clear()  # what the operator remembers alone spares the request
        await events.say(about, kind=WARNING, reason=reasons.PLACEMENT_LACKING, message="bundle 0 lacks it")
        assert bool(api.of("events")) is is_said, f"after {minutes} minutes"


async def test_a_death_of_long_ago_is_no_event(serving: Stage) -> None:
    """An operator that starts finds the rows of hours."""
    dies(serving, "Restarting", incarnation=2, failures=(failure(detectedTime="2026-01-01T00:00:00Z"),))
    await serving.one_pass()
    assert [event["reason"] for event in serving.api.of("events")] == [reasons.SCALE_UP]


def sample(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


async def test_a_failure_counts_in_the_pass_that_writes_it_into_the_status_and_in_no_other(serving: Stage) -> None:
    def counted() -> list[float]:
        names_and_labels: list[tuple[str, dict[str, str]]] = [
            ("enginehouse_failures_total", {"class": "Signal"}),
            ("enginehouse_death_to_status_seconds_sum", {"noticed_by": "monitor"}),
            ("enginehouse_death_to_report_seconds_sum", {}),
        ]
        return [sample(name, **labels) or 0.0 for name, labels in names_and_labels]

    before = counted()
    dies(serving, "Restarting", incarnation=2, failures=(failure(reportedTime="2026-01-01T00:59:02Z"),))
    serving.api.refuse = lambda verb, plural, _: Conflict("x", status=409) if plural == "inferenceengines" else None
    await serving.one_pass()
    assert counted() == before, "the status does not tell it yet"
    serving.api.refuse = lambda *_: None
    for _ in range(3):
        await serving.one_pass()
    serving.restart()
    await serving.settle()
    assert [after - was for after, was in zip(counted(), before, strict=True)] == [1.0, 60.0, 2.0]


async def test_the_conditions_of_an_engine_are_told_with_their_reasons_until_it_is_gone(serving: Stage) -> None:
    def told(condition: str, reason: str) -> float | None:
        return sample("enginehouse_engine_condition", namespace="n", engine="e", condition=condition, reason=reason)

    assert (told("Ready", reasons.ALL_REPLICAS_SERVE), told("Progressing", reasons.SETTLED)) == (1.0, 0.0)
    dies(serving)
    await serving.one_pass()
    assert (told("Ready", reasons.ALL_REPLICAS_SERVE), told("Available", reasons.NO_REPLICA_SERVES)) == (None, 0.0)
    metrics.ENGINES.forget("n", "e")  # as in a process that has just begun to lead
    await serving.settle()
    assert told("Available", reasons.NO_REPLICA_SERVES) == 0.0, "also of a status that needs no write"
    del serving.api.objects["inferenceengines", "e"]
    await serving.one_pass()
    (family,) = metrics.ENGINES.collect()
    assert [found for found in family.samples if found.labels["engine"] == "e"] == []


async def test_a_reason_that_comes_and_goes_for_an_hour_is_one_event_also_of_operators_that_start_anew() -> None:
    stage = Stage(**RAY)
    await stage.settle()
    for number in range(20):
        leader_says(stage, {0: "Serving", 1: "Pending"}, {1: "needs accelerator: 1, no node has it"})
        await stage.settle()
        leader_says(stage, {0: "Serving", 1: "Serving"})
        await stage.settle()
        if number % 5 == 0:
            stage.restart()
    events = [(event["type"], event["reason"]) for event in stage.api.of("events")]
    assert events == [("Normal", reasons.SCALE_UP), ("Warning", reasons.PLACEMENT_LACKING), ("Normal", reasons.PLACED)]
