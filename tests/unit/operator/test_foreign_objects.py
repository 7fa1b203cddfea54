"""Objects as anybody may have written them: the operator and the monitors read them or refuse them in words, and a pod that is
made of one keeps the promises of `wanted/pods.py` whatever its template says.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crd_objects
from crd_objects import ANYTHING
from enginehouse_operator import api, names, observe, spec_rules
from enginehouse_operator.endings import ending_of
from enginehouse_operator.monitor import peers, row
from enginehouse_operator.plan_engine import plan_engine
from enginehouse_operator.plan_replica import plan_replica
from enginehouse_operator.status import replica_status
from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.pods import TOKEN_DIR, PodSettings, claims, pod
from enginehouse_operator.wanted.template import ENGINE, POD

FUZZ = settings(max_examples=100, suppress_health_check=list(HealthCheck))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
REPLICA = Owner(kind=names.REPLICA_KIND, name="e-0-abc", uid="replica-uid", namespace="n", engine="e")
SETTINGS = PodSettings(engine_image="engine:1", monitor_image="operator:1", pull_policy="IfNotPresent")
URIS = st.sampled_from(["hf://a/b", "pvc://claim/path", "pvc://claim", "file:///m", "s3://x", "hf://a", "pvc:///", ""])
"""Beside which a text of any other kind says little."""


@FUZZ
@given(spec=crd_objects.specs("InferenceEngine") | st.dictionaries(st.text(max_size=5), ANYTHING, max_size=3), uri=st.none() | URIS)
def test_a_spec_is_read_or_refused_at_its_path(spec: dict[str, Any], uri: str | None) -> None:
    if uri is not None:
        spec = {**spec, "model": {**(spec.get("model") or {}), "uri": uri}}
    try:
        parsed = spec_rules.parse_engine(spec)
        rendered = pod(REPLICA, parsed.copy(), name="e-0-abc-xyz", ordinal=0, settings=SETTINGS)
    except api.InvalidSpec as error:
        refused = error
    else:
        assert json.dumps(rendered)
        assert isinstance(claims(parsed.copy()), tuple)
        assert api.parse_copy(json.loads(msgspec.json.encode(parsed.copy()))) == parsed.copy()
        return
    assert refused.reason
    assert refused.message
    assert refused.path.startswith("spec")


MOUNTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["monitor-token", "scratch", "mine"]), "mountPath": st.sampled_from(["/mine", TOKEN_DIR, "/tmp"])}
)
ENTRIES = st.lists(st.dictionaries(st.sampled_from(["name", "key", "value"]), st.text(max_size=5), max_size=2), max_size=2)
ENGINE_CONTAINER = st.fixed_dictionaries(
    {"name": st.just("engine")},
    optional={
        "args": st.lists(st.text(max_size=9), max_size=2),
        "env": ENTRIES,
        "volumeMounts": st.lists(MOUNTS, min_size=1, max_size=2),
    },
)
ANY_CONTAINER = st.dictionaries(st.sampled_from(["name", *ENGINE, "securityContext", "command"]), ANYTHING, max_size=3)
PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries({}, optional={"labels": st.dictionaries(st.text(max_size=9), st.text(max_size=9))}),
        "spec": st.fixed_dictionaries(
            {},
            optional={"nodeSelector": ANYTHING, "tolerations": ENTRIES, "volumes": ENTRIES}
            | {"containers": st.lists(ENGINE_CONTAINER, min_size=1, max_size=1)},
        ),
    },
)
ODD = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.dictionaries(st.sampled_from(["labels", "annotations", "name"]), ANYTHING, max_size=2) | ANYTHING,
        "spec": st.dictionaries(st.sampled_from([*POD, "hostPID", "shareProcessNamespace"]), ANYTHING, max_size=3)
        | st.fixed_dictionaries({"containers": st.lists(ANY_CONTAINER, max_size=2) | ANYTHING})
        | ANYTHING,
        "status": ANYTHING,
    },
)
TEMPLATES = PLAUSIBLE | ODD


@FUZZ
@given(template=TEMPLATES)
def test_no_template_breaks_what_a_pod_promises(template: dict[str, Any]) -> None:
    copy = api.EngineCopy(executor="Simulated", template=template)
    try:
        found = pod(REPLICA, copy, name="e-0-abc-xyz", ordinal=0, settings=SETTINGS)
    except api.InvalidSpec as error:
        refused = error.path
    else:
        _check_promises(found)
        assert isinstance(claims(copy), tuple)
        return
    assert refused.startswith("spec.template")


def _check_promises(found: dict[str, Any]) -> None:
    plain = pod(REPLICA, api.EngineCopy(executor="Simulated"), name="e-0-abc-xyz", ordinal=0, settings=SETTINGS)
    ours = set(plain["spec"]) - set(POD)
    assert {key: found["spec"].get(key) for key in ours if key != "containers"} == {
        key: plain["spec"][key] for key in ours if key != "containers"
    }
    assert set(found["spec"]) <= ours | set(POD)
    theirs, own = found["metadata"]["labels"], plain["metadata"]["labels"]
    assert {key: theirs.get(key) for key in own if key != names.LABEL_REVISION} == {
        key: own[key] for key in own if key != names.LABEL_REVISION
    }
    (engine,), (before,) = found["spec"]["containers"], plain["spec"]["containers"]
    assert {key: engine[key] for key in before if key not in ENGINE} == {key: before[key] for key in before if key not in ENGINE}
    assert engine["args"][: len(before["args"])] == before["args"]
    assert "monitor-token" not in [mount.get("name") for mount in engine["volumeMounts"]]


@FUZZ
@given(
    spec=crd_objects.specs("EngineReplica"),
    status=crd_objects.statuses("EngineReplica"),
    annotations=st.dictionaries(st.just(names.ANNOTATION_RESUME_AFTER), st.text(max_size=5) | crd_objects._TIMES),
)
def test_a_replica_that_anybody_wrote_is_read_and_judged(
    spec: dict[str, Any], status: dict[str, Any], annotations: dict[str, str]
) -> None:
    owner = {"apiVersion": "enginehouse.dev/v1alpha1", "kind": "InferenceEngine", "name": "e", "uid": "u", "controller": True}
    metadata = {
        "name": "e-0-abc",
        "namespace": "n",
        "uid": "replica-uid",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [owner],
    }
    raw = {"metadata": metadata, "spec": spec, "status": status}
    engine = observe.engine({"metadata": {"name": "e", "namespace": "n", "uid": "u", "annotations": annotations}})
    parsed = spec_rules.parse_engine({"executor": "Simulated"})
    replicas = observe.replicas(engine_uid="u", replica_objects=[raw], pods=[])
    for replica in replicas:
        ending_of(replica, now=NOW)
        plan_replica(replica, now=NOW)
        replica_status(replica, problems=(), now=NOW)
    plan_engine(engine, parsed, replicas, now=NOW)


@FUZZ
@given(spec=crd_objects.specs("EngineReplica"), status=crd_objects.statuses("EngineReplica"))
def test_a_monitor_reads_whatever_rows_others_have_written(spec: dict[str, Any], status: dict[str, Any]) -> None:
    replica = {"metadata": {"name": "e-0-abc", "uid": "replica-uid"}, "spec": spec, "status": status}
    own = row.Row("m", "pod-uid", "10.0.0.1", ranks=tuple({"rank": rank, "state": "Serving"} for rank in range(3)))
    others = [member["name"] for member in status.get("members") or ()]
    for name in ["m", *others]:
        row.found_in(replica, name=name, uid="pod-uid")
        peers.dead_elsewhere(replica, own_name=name)
    for order in (*peers.orders(own, replica, replica_uid="replica-uid"), *peers.resized(replica)):
        assert json.dumps(order.message())
