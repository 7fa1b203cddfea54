"""What pods, services and rights look like: the promises of the design, read off the manifests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from enginehouse_operator import api, names, reasons
from enginehouse_operator.wanted.arguments import arguments
from enginehouse_operator.wanted.disruption import disruption_budget, min_available
from enginehouse_operator.wanted.metadata import Owner, covers, marked
from enginehouse_operator.wanted.pods import LOST_NODE_SECONDS, PodSettings, claims, pod
from enginehouse_operator.wanted.ray_token import token_secret
from enginehouse_operator.wanted.rights import rights
from enginehouse_operator.wanted.services import endpoint, services
from enginehouse_operator.wanted.template import OWNED_FLAGS, REFUSED, merge

REPLICA = Owner(kind=names.REPLICA_KIND, name="e-0-abc", uid="replica-uid", namespace="n", engine="e")
SETTINGS = PodSettings(engine_image="engine:1", monitor_image="operator:1", pull_policy="IfNotPresent")


def engine_copy(uri: str = "file:///models/m", **changes: Any) -> api.EngineCopy:
    return api.EngineCopy(model=api.Model(uri=uri), **changes)


def rendered(copy: api.EngineCopy, ordinal: int = 0) -> dict[str, Any]:
    return pod(REPLICA, copy, name="e-0-abc-xyz", ordinal=ordinal, settings=SETTINGS)


def containers(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = manifest["spec"]
    return {found["name"]: found for found in spec["containers"] + spec["initContainers"]}


def test_the_pod_passes_the_restricted_standard_and_is_never_restarted() -> None:
    manifest = rendered(engine_copy())
    spec = manifest["spec"]
    assert spec["restartPolicy"] == "Never"
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(manifest).values():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_monitor_is_a_native_sidecar_and_alone_holds_a_token() -> None:
    manifest = rendered(engine_copy())
    monitor, engine = containers(manifest)["monitor"], containers(manifest)["engine"]
    assert monitor["restartPolicy"] == "Always"
    assert manifest["spec"]["initContainers"] == [monitor]
    assert manifest["spec"]["automountServiceAccountToken"] is False
    assert "monitor-token" in {mount["name"] for mount in monitor["volumeMounts"]}
    assert "monitor-token" not in {mount["name"] for mount in engine["volumeMounts"]}
    assert manifest["spec"]["serviceAccountName"] == REPLICA.name
    assert monitor["args"] == [
        "--socket=/run/enginehouse/monitor.sock",
        "--namespace=n",
        "--replica=e-0-abc",
        "--replica-uid=replica-uid",
        "--member=e-0-abc-xyz",
    ]


def test_every_mount_has_a_volume_and_the_two_containers_share_the_sockets() -> None:
    for uri in ("file:///m", "pvc://claim/path", "hf://a/b"):
        manifest = rendered(engine_copy(uri, auth=api.Auth(api_key_secret_ref=api.KeyRef(name="s", key="k"))))
        volumes = {volume["name"] for volume in manifest["spec"]["volumes"]}
        mounts = [mount["name"] for container in containers(manifest).values() for mount in container["volumeMounts"]]
        assert set(mounts) == volumes
        assert mounts.count("sockets") == 2


def test_the_leader_is_born_in_service_and_a_worker_is_not() -> None:
    assert rendered(engine_copy())["metadata"]["labels"][names.LABEL_SERVING] == "true"
    assert names.LABEL_SERVING not in rendered(engine_copy(), ordinal=1)["metadata"]["labels"]


SPREAD = engine_copy(
    executor="Simulated",
    parallelism=api.Parallelism(data=2, tensor=2, workers_per_member=2),
    auth=api.Auth(api_key_secret_ref=api.KeyRef(name="s", key="k")),
)


def test_members_are_told_their_number_and_where_the_leader_is() -> None:
    leader = names.member_name(REPLICA.name, replica_uid=REPLICA.uid, ordinal=0)
    for ordinal in range(SPREAD.members):
        given = dict(argument.split("=", 1) for argument in arguments(REPLICA, SPREAD, ordinal=ordinal))
        expected = {"--members": "2", "--member": str(ordinal), "--workers-per-member": "2"}
        assert expected.items() <= given.items()
        assert given["--leader"] == f"{leader}.e-members.n.svc"
    manifest = pod(REPLICA, SPREAD, name=leader, ordinal=0, settings=SETTINGS)
    assert (manifest["spec"]["hostname"], manifest["spec"]["subdomain"]) == (leader, "e-members")
    assert not any(argument.startswith("--member") for argument in arguments(REPLICA, engine_copy()))


def test_only_the_leader_has_ports_a_readiness_probe_and_the_clients_key() -> None:
    leader, worker = (containers(rendered(SPREAD, ordinal))["engine"] for ordinal in (0, 1))
    assert {port["name"]: port["containerPort"] for port in leader["ports"]} == {"http": 8000, "members": 7411}
    assert not {"ports", "readinessProbe"} & set(worker)
    assert any(argument.startswith("--api-key-file=") for argument in leader["args"])
    assert not any(argument.startswith("--api-key-file=") for argument in worker["args"])
    assert "api-key" not in {volume["name"] for volume in rendered(SPREAD, 1)["spec"]["volumes"]}
    alone = containers(rendered(engine_copy()))["engine"]
    assert [port["name"] for port in alone["ports"]] == ["http"]


def shared_memory_mib(copy: api.EngineCopy, ordinal: int = 0) -> int:
    (volume,) = (found for found in rendered(copy, ordinal)["spec"]["volumes"] if found["name"] == "shared-memory")
    assert volume["emptyDir"]["medium"] == "Memory"
    return int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi"))


def test_shared_memory_is_sized_by_the_queues_of_the_member() -> None:
    def several(**shape: int) -> api.EngineCopy:
        return engine_copy(executor="Multiprocess", parallelism=api.Parallelism(**shape))

    assert shared_memory_mib(several()) == 64 + 11  # 8 MiB + 64 KiB x 2, and 2 MiB + 64 KiB x 2
    assert shared_memory_mib(several(tensor=8)) == 64 + 26
    assert shared_memory_mib(several(data=2, tensor=8)) == 64 + 52
    assert shared_memory_mib(SPREAD, 1) == 64 + 5, "a worker has the answers of its own workers to hold"
    devices = msgspec.structs.replace(several(tensor=2), resources=api.Resources(limits={"nvidia.com/gpu": 2}))
    assert shared_memory_mib(devices) == shared_memory_mib(several(tensor=2)) + 1024


RAY = engine_copy(executor="Ray", parallelism=api.Parallelism(data=2, tensor=2, workers_per_member=1))


def test_a_pod_of_ray_mounts_the_replicas_token_into_the_engine_alone() -> None:
    for ordinal in range(RAY.members):
        manifest = rendered(RAY, ordinal)
        secret = token_secret(REPLICA, token="t")
        (volume,) = (found for found in manifest["spec"]["volumes"] if found["name"] == "ray-token")
        assert volume["secret"]["secretName"] == secret["metadata"]["name"]
        assert volume["secret"]["defaultMode"] == 0o440
        mounts = {mount["name"]: mount for mount in containers(manifest)["engine"]["volumeMounts"]}
        assert mounts["ray-token"]["readOnly"]
        assert "ray-token" not in {mount["name"] for mount in containers(manifest)["monitor"]["volumeMounts"]}
        given = dict(argument.split("=", 1) for argument in arguments(REPLICA, RAY, ordinal=ordinal))
        assert given["--ray-token-file"].startswith(mounts["ray-token"]["mountPath"])
        assert {"--ray-strategy": "Pack", "--engine-name": "e"}.items() <= given.items()
        assert not any("token" in str(entry).lower() for entry in containers(manifest)["engine"]["env"])
    assert "ray-token" not in {volume["name"] for volume in rendered(SPREAD)["spec"]["volumes"]}


def test_the_token_goes_with_its_replica_and_is_not_that_of_a_namesake() -> None:
    secret = token_secret(REPLICA, token="t")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == REPLICA.uid
    assert secret["immutable"] is True
    later = msgspec.structs.replace(REPLICA, uid="another")
    assert token_secret(later, token="t")["metadata"]["name"] != secret["metadata"]["name"]
    assert len(names.token_secret_name("e" * 54, replica_uid="u")) <= 63


def test_a_pod_of_ray_names_the_ports_that_others_reach() -> None:
    leader, worker = (containers(rendered(RAY, ordinal))["engine"] for ordinal in (0, 1))
    of_all = {"ray-node": 6380, "ray-objects": 6381}
    found = [{port["name"]: port["containerPort"] for port in container["ports"]} for container in (leader, worker)]
    assert found == [{"http": 8000, "members": 7411, "ray-head": 6379} | of_all, of_all]
    assert "readinessProbe" not in worker


def test_a_replica_of_ray_with_one_pod_can_get_more() -> None:
    alone = engine_copy(executor="Ray")
    given = dict(argument.split("=", 1) for argument in arguments(REPLICA, alone))
    assert {"--members": "1", "--member": "0", "--workers-per-member": "1", "--data-parallel": "1"}.items() <= given.items()
    assert "members" in {port["name"] for port in containers(rendered(alone))["engine"]["ports"]}
    assert "--leads" in containers(rendered(alone))["monitor"]["args"]
    assert "--leads" not in containers(rendered(RAY, 1))["monitor"]["args"]
    assert "--leads" not in containers(rendered(SPREAD))["monitor"]["args"]


def test_shared_memory_with_ray_has_its_store_and_in_the_leader_room_for_all_ranks_there_may_be() -> None:
    three = RAY.with_data(3)
    assert shared_memory_mib(three) == shared_memory_mib(RAY), "a pod stays as it was made"
    queues = 32 * (8 * 1024 + 3 * 64) + 2 * 1024 + 2 * 64  # 64 pods of one worker are 32 ranks of two
    assert shared_memory_mib(RAY) == -(-(64 * 1024 + queues + 78643200 // 1024) // 1024)
    assert shared_memory_mib(RAY, 1) == 64 + 75 + 3


def test_a_gpu_is_asked_for_as_written() -> None:
    resources = api.Resources(limits={"nvidia.com/gpu": 2, "memory": "8Gi"})
    assert containers(rendered(engine_copy(resources=resources)))["engine"]["resources"] == {
        "limits": {"nvidia.com/gpu": "2", "memory": "8Gi"}
    }


@pytest.mark.parametrize(
    ("copy", "flags"),
    [
        (engine_copy("pvc://claim/dir/m.gguf"), {"--model": "file:///var/lib/enginehouse/model/dir/m.gguf"}),
        (engine_copy("pvc://claim"), {"--model": "file:///var/lib/enginehouse/model", "--served-model-name": "claim"}),
        (engine_copy("hf://a/b"), {"--model": "hf://a/b", "--model-cache-dir": "/var/lib/enginehouse/cache"}),
        (engine_copy(context=api.Context(min_length=7, max_length=9)), {"--min-context-length": "7", "--max-context-length": "9"}),
        (engine_copy(parallelism=api.Parallelism(data=3)), {"--data-parallel": "3"}),
        (
            engine_copy(auth=api.Auth(api_key_secret_ref=api.KeyRef(name="s", key="k"))),
            {"--api-key-file": "/var/run/secrets/enginehouse/api-key/api-key"},
        ),
        (
            engine_copy(tls=api.Tls(secret_name="s")),
            {
                "--tls-certificate-file": "/var/run/secrets/enginehouse/tls/tls.crt",
                "--tls-key-file": "/var/run/secrets/enginehouse/tls/tls.key",
            },
        ),
        (
            engine_copy(),
            {
                "--replica-uid": REPLICA.uid,
                "--host": "0.0.0.0",
                "--port": "8000",
                "--monitor-socket": "/run/enginehouse/monitor.sock",
            },
        ),
    ],
)
def test_the_launcher_is_told(copy: api.EngineCopy, flags: dict[str, str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments(REPLICA, copy))
    assert flags.items() <= given.items()


def test_users_can_not_overwrite_any_flag_that_the_operator_sets() -> None:
    everything = api.EngineCopy(
        model=api.Model(uri="hf://a/b", revision="r", served_name="s"),
        context=api.Context(max_length=1),
        auth=api.Auth(api_key_secret_ref=api.KeyRef(name="s", key="k")),
        tls=api.Tls(secret_name="s"),
        parallelism=api.Parallelism(data=2, workers_per_member=1),
        executor="Ray",
    )
    assert {argument.split("=", 1)[0] for argument in arguments(REPLICA, everything)} == OWNED_FLAGS


def test_claims_are_those_of_model_cache_and_template() -> None:
    cached = msgspec.structs.replace(engine_copy("hf://a/b"), model=api.Model(uri="hf://a/b", cache=api.ModelCache(claim_name="c")))
    template = {"spec": {"volumes": [{"name": "x", "persistentVolumeClaim": {"claimName": "t"}}, {"name": "y", "emptyDir": {}}]}}
    assert claims(engine_copy("pvc://m/x")) == ("m",)
    assert claims(msgspec.structs.replace(cached, template=template)) == ("c", "t")


def test_an_overlay_is_merged_by_the_table() -> None:
    template = {
        "metadata": {"labels": {"team": "search"}, "annotations": {"a": "b"}},
        "spec": {
            "nodeSelector": {"gpu": "l40s"},
            "securityContext": {"runAsUser": 7},
            "volumes": [{"name": "models", "emptyDir": {}}],
            "containers": [
                {
                    "name": "engine",
                    "args": ["--dtype=$(A)"],
                    "env": [{"name": "A", "value": "b"}],
                    "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                    "imagePullPolicy": "Never",
                }
            ],
        },
    }
    manifest = rendered(engine_copy(template=template))
    engine = containers(manifest)["engine"]
    assert manifest["metadata"]["labels"]["team"] == "search"
    assert manifest["metadata"]["labels"][names.LABEL_ENGINE] == "e"
    assert manifest["spec"]["nodeSelector"] == {"gpu": "l40s"}
    assert manifest["spec"]["securityContext"]["runAsUser"] == 7
    assert manifest["spec"]["securityContext"]["runAsNonRoot"] is True
    assert engine["args"][-1] == "--dtype=$(A)"
    assert {"name": "A", "value": "b"} in engine["env"]
    assert {"name": "models", "mountPath": "/models"} in engine["volumeMounts"]
    assert engine["imagePullPolicy"] == "Never"


def nested(path: str, value: Any) -> dict[str, Any]:
    first, *rest = path.split(".")
    if first == "containers":
        return {"spec": {"containers": [{"name": "engine", rest[0]: value}]}}
    return {first: {rest[0]: value}}


@pytest.mark.parametrize("path", REFUSED)
def test_a_key_that_the_operator_owns_is_refused_with_its_reason(path: str) -> None:
    with pytest.raises(api.InvalidSpec) as refused:
        rendered(engine_copy(template=nested(path, True)))
    assert refused.value.reason == reasons.TEMPLATE_INVALID
    assert REFUSED[path] in refused.value.message
    assert refused.value.path.endswith(path.split(".")[-1])


@pytest.mark.parametrize(
    "template",
    [
        {"status": {}},
        {"spec": {"unknownKey": 1}},
        {"spec": []},
        {"spec": {"volumes": {}}},
        {"spec": {"volumes": [{"name": "sockets", "emptyDir": {}}]}},
        {"spec": {"containers": [{"name": "monitor", "env": []}]}},
        {"spec": {"containers": [{"name": "mine", "image": "x"}]}},
        {"spec": {"containers": [{"name": "engine", "args": ["--port=1"]}]}},
        {"spec": {"containers": [{"name": "engine", "args": ["--model", "x"]}]}},
        {"spec": {"containers": [{"name": "engine", "args": [1]}]}},
        {"spec": {"containers": [{"name": "engine", "args": ["$(A)"], "env": [{"name": "A", "value": "--port=1"}]}]}},
        {"spec": {"containers": [{"name": "engine", "args": ["--$(A)=1"]}]}},
        {"spec": {"containers": [{"name": "engine", "volumeMounts": [{"name": "x", "mountPath": "/tmp/"}]}]}},
        {"spec": {"containers": [{"name": "engine", "volumeMounts": [{"name": "monitor-token", "mountPath": "/x"}]}]}},
        {"metadata": {"labels": {"enginehouse.dev/serving": "true"}}},
        {"metadata": {"labels": {"app.kubernetes.io/name": "x"}}},
        {"metadata": {"name": "x"}},
    ],
    ids=str,
)
def test_an_overlay_that_breaks_the_pod_is_refused(template: dict[str, Any]) -> None:
    with pytest.raises(api.InvalidSpec) as refused:
        rendered(engine_copy(template=template))
    assert refused.value.reason == reasons.TEMPLATE_INVALID


@pytest.mark.parametrize("kind", [lambda inner: {"a": inner}, lambda inner: [inner]], ids=["objects", "lists"])
def test_an_overlay_that_is_nested_deeper_than_any_pod_is_refused(kind: Callable[[Any], Any]) -> None:
    affinity: Any = {}
    for _ in range(2000):
        affinity = kind(affinity)
    with pytest.raises(api.InvalidSpec, match="nested deeper") as refused:
        merge(rendered(engine_copy()), {"spec": {"affinity": affinity}})
    assert refused.value.reason == reasons.TEMPLATE_INVALID


def test_an_empty_overlay_changes_nothing_and_the_pod_itself_is_not_touched() -> None:
    manifest = rendered(engine_copy())
    assert merge(manifest, {}) == manifest
    merge(manifest, {"spec": {"volumes": [{"name": "x"}]}})
    assert "x" not in {volume["name"] for volume in manifest["spec"]["volumes"]}


def test_the_serving_service_selects_leaders_in_service() -> None:
    owner = Owner(kind=names.ENGINE_KIND, name="e", uid="u", namespace="n", engine="e")
    members, serving = services(owner, api.Service(port=81, type="NodePort"), scheme="http")
    assert members["spec"]["clusterIP"] == "None"
    assert serving["spec"]["selector"] == {names.LABEL_ENGINE: "e", names.LABEL_SERVING: "true"}
    assert {port["name"]: port["targetPort"] for port in members["spec"]["ports"]} == {"http": 8000, "members": 7411}
    assert members["spec"]["publishNotReadyAddresses"] is True
    assert serving["spec"]["selector"].items() <= rendered(engine_copy())["metadata"]["labels"].items()
    assert (serving["spec"]["type"], serving["spec"]["ports"][0]["port"]) == ("NodePort", 81)
    assert endpoint(owner, api.Service(), scheme="http") == "http://e.n.svc"
    assert endpoint(owner, api.Service(port=81), scheme="http") == "http://e.n.svc:81"


def test_with_a_certificate_everybody_speaks_https_and_the_leaders_engine_alone_holds_the_key() -> None:
    copy = msgspec.structs.replace(SPREAD, tls=api.Tls(secret_name="certificate"))
    leader, worker = (containers(rendered(copy, ordinal)) for ordinal in (0, 1))
    assert leader["engine"]["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert containers(rendered(SPREAD))["engine"]["readinessProbe"]["httpGet"]["scheme"] == "HTTP"
    mounted = {name: [mount["name"] for mount in found["volumeMounts"]] for name, found in leader.items()}
    assert ("tls" in mounted["engine"], "tls" in mounted["monitor"]) == (True, False)
    (volume,) = (found for found in rendered(copy)["spec"]["volumes"] if found["name"] == "tls")
    assert volume["secret"]["secretName"] == "certificate"
    assert "tls" not in [found["name"] for found in rendered(copy, 1)["spec"]["volumes"]]
    assert not any(argument.startswith("--tls") for argument in worker["engine"]["args"])
    owner = Owner(kind=names.ENGINE_KIND, name="e", uid="u", namespace="n", engine="e")
    for service in services(owner, api.Service(), scheme=copy.scheme):
        assert service["spec"]["ports"][0]["appProtocol"] == "https"
    assert endpoint(owner, api.Service(port=443), scheme=copy.scheme) == "https://e.n.svc"
    assert endpoint(owner, api.Service(), scheme=copy.scheme) == "https://e.n.svc:80"


def test_a_monitor_may_touch_its_own_replica_only() -> None:
    account, role, binding = rights(REPLICA)
    assert account["automountServiceAccountToken"] is False
    assert {tuple(rule["resourceNames"]) for rule in role["rules"]} == {(REPLICA.name,)}
    assert [(rule["resources"], rule["verbs"]) for rule in role["rules"]] == [
        (["enginereplicas"], ["list", "watch"]),
        (["enginereplicas/status"], ["patch"]),
    ]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": REPLICA.name, "namespace": "n"}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


@pytest.mark.parametrize(
    ("seen", "wanted", "covered"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": [{"x": 1, "y": 2}]}, {"a": [{"x": 1}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({}, {}, True),
    ],
)
def test_covers(seen: Any, wanted: Any, covered: bool) -> None:
    assert covers(seen, wanted) is covered


def test_the_mark_shows_that_a_field_is_no_longer_wanted() -> None:
    before = marked({"metadata": {"name": "x"}, "spec": {"a": 1, "b": 2}})
    after = marked({"metadata": {"name": "x"}, "spec": {"a": 1}})
    assert covers(before["spec"], after["spec"])
    assert not covers(before, after)


def test_names_fit_and_differ() -> None:
    engine = "e" * 40
    replica = names.replica_name(engine, engine_uid="u", index=999, epoch=1)
    member = names.member_name(replica, replica_uid="r", ordinal=0)
    assert len(replica) <= 54
    assert len(member) <= 63
    assert replica != names.replica_name(engine, engine_uid="another", index=999, epoch=1)
    assert member != names.member_name(replica, replica_uid="another", ordinal=0)


def tolerated(*given: Any) -> list[Any]:
    template = {"spec": {"tolerations": list(given)}} if given else {}
    found: list[Any] = rendered(engine_copy(template=template))["spec"]["tolerations"]
    return found


def test_a_pod_leaves_a_lost_node_after_a_while_that_the_template_may_change() -> None:
    ours = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
        for key, seconds in LOST_NODE_SECONDS.items()
    ]
    assert tolerated() == ours
    assert LOST_NODE_SECONDS["node.kubernetes.io/unreachable"] + 50 == 60, "about a minute after a node's last word"
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists"}
    assert tolerated(gpu) == [gpu, *ours]
    patient = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 600, "effect": "NoExecute"}
    assert tolerated(patient) == [patient, ours[1]]
    scheduling = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoSchedule"}
    assert tolerated(scheduling) == [scheduling, *ours], "another effect"
    assert tolerated({"operator": "Exists"}) == [{"operator": "Exists"}], "every taint"
    assert tolerated("nonsense") == ["nonsense"], "the API server says what is wrong"


@pytest.mark.parametrize(
    ("changes", "members"),
    [
        ({"replicas": 3}, 2),
        ({"replicas": 3, "rollout": api.Rollout(max_unavailable=2)}, 1),
        ({"replicas": 1}, 0),
        ({"replicas": 2, "rollout": api.Rollout(max_unavailable=5)}, 0),
        ({"replicas": 3, "suspend": True}, 0),
        ({"replicas": 0}, 0),
        ({"replicas": 3, "executor": "Simulated", "parallelism": api.Parallelism(data=4, workers_per_member=1)}, 11),
    ],
)
def test_evictions_may_take_as_many_pods_as_replicas_may_be_away(changes: dict[str, Any], members: int) -> None:
    spec = api.EngineSpec(model=api.Model(uri="hf://a/b"), **changes)
    owner = Owner(kind=names.ENGINE_KIND, name="e", uid="u", namespace="n", engine="e")
    budget = disruption_budget(owner, spec)
    assert (budget["spec"]["minAvailable"], min_available(spec)) == (members, members)
    assert budget["spec"]["selector"]["matchLabels"].items() <= rendered(engine_copy())["metadata"]["labels"].items()
    assert (budget["metadata"]["name"], budget["metadata"]["ownerReferences"][0]["uid"]) == ("e-members", "u")
