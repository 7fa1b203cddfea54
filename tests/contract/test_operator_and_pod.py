"""What the operator writes into a pod is what launcher and monitor read: flags, ports, sockets, rights, words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine import options as engine_options
from enginehouse_engine.launcher import phase, publications, ray_node, termination
from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.unit import UnitState
from enginehouse_engine.launcher.units import engine_units
from enginehouse_engine.ray import manager_messages
from enginehouse_engine.shared_memory_size import rank_shared_memory_bytes
from enginehouse_operator import api, failures, names, placement, pod_state, ranks
from enginehouse_operator.monitor import __main__ as monitor
from enginehouse_operator.monitor import row as rows
from enginehouse_operator.wanted import shared_memory
from enginehouse_operator.wanted.arguments import arguments
from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.pods import PodSettings, pod

REPLICA = Owner(kind=names.REPLICA_KIND, name="e-0-abc", uid="replica-uid", namespace="n", engine="e")
REAPING_SECONDS = 10
"""To kill, to reap and to write the last row."""
SETTINGS = PodSettings(engine_image="e:1", monitor_image="o:1", pull_policy="Never")

copies = st.builds(
    api.EngineCopy,
    model=st.builds(
        api.Model,
        uri=st.sampled_from(["hf://a/b", "pvc://claim/dir/m.gguf", "pvc://claim", "file:///models/m"]),
        served_name=st.sampled_from([None, "name"]),
    ),
    executor=st.sampled_from(["InProcess", "Multiprocess", "Ray", "Simulated"]),
    parallelism=st.builds(api.Parallelism, data=st.integers(1, 64)),
    api_servers=st.integers(1, 64),
    memory=st.builds(api.Memory, utilization_percent=st.integers(1, 100)),
    context=st.one_of(
        st.builds(api.Context, min_length=st.integers(1, 100)),
        st.builds(api.Context, min_length=st.integers(1, 100), max_length=st.integers(100, 10**8)),
    ),
    startup=st.builds(api.Startup, timeout_seconds=st.integers(1, 86400)),
    drain=st.builds(api.Drain, timeout_seconds=st.integers(0, 86400)),
    hang=st.builds(api.Hang, stall_seconds=st.integers(1, 86400)),
    auth=st.sampled_from([None, api.Auth(api_key_secret_ref=api.KeyRef(name="s", key="k"))]),
    tls=st.sampled_from([None, api.Tls(secret_name="s")]),
)


@given(copies)
def test_the_launcher_reads_what_the_spec_says(copy: api.EngineCopy) -> None:
    options = engine_options.parse(arguments(REPLICA, copy))
    assert options.executor == copy.executor
    assert options.parallel.data == copy.parallelism.data
    assert options.api_servers == copy.api_servers
    assert options.memory_utilization_percent == copy.memory.utilization_percent
    assert options.max_context_length == copy.context.max_length
    assert options.min_context_length == copy.context.min_length
    assert options.startup_timeout_seconds == copy.startup.timeout_seconds
    assert options.drain_timeout_seconds == copy.drain.timeout_seconds
    assert options.hang_stall_seconds == copy.hang.stall_seconds
    assert (options.replica_uid, options.host, options.port) == (REPLICA.uid, "0.0.0.0", names.HTTP_PORT)
    assert (options.api_key_file is None) == (copy.auth is None)
    assert (options.tls_certificate_file is None) == (options.tls_key_file is None) == (copy.tls is None)
    assert copy.model.served_name in (None, options.served_model_name)
    assert options.served_model_name


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_the_launchers_of_several_members_read_their_number_and_their_leader(data: int, held: int, draw: st.DataObject) -> None:
    shape = api.Parallelism(data=data * held, workers_per_member=held)
    ordinal = draw.draw(st.integers(0, data - 1))
    options = engine_options.parse(arguments(REPLICA, api.EngineCopy(executor="Simulated", parallelism=shape), ordinal=ordinal))
    told = (options.members, options.member, options.workers_per_member, bool(options.leader))
    assert told == ((data, ordinal, held, True) if data > 1 else (1, 0, None, False))


@given(st.integers(1, 4), st.integers(1, 2), st.sampled_from([1, 2, 4]), st.sampled_from([None, "Spread"]))
def test_the_launchers_of_ray_read_their_number_their_token_and_how_ranks_are_placed(
    data: int, tensor: int, held: int, strategy: str | None
) -> None:
    data *= -(-held // tensor)
    shape = api.Parallelism(data=data, tensor=tensor, workers_per_member=held)
    copy = api.EngineCopy(model=api.Model(uri="hf://a/b"), executor="Ray", parallelism=shape)
    copy = msgspec.structs.replace(copy, ray=api.Ray(placement_strategy=strategy) if strategy else None)
    for ordinal in range(copy.members):
        options = engine_options.parse(arguments(REPLICA, copy, ordinal=ordinal))
        assert (options.members, options.member, options.workers_per_member) == (copy.members, ordinal, held)
        assert (options.ray_strategy, options.engine_name, options.leader != "") == (strategy or "Pack", "e", True)
        manifest = pod(REPLICA, copy, name="member", ordinal=ordinal, settings=SETTINGS)
        mounts = [mount["mountPath"] for mount in manifest["spec"]["containers"][0]["volumeMounts"]]
        assert str(options.ray_token_file.parent) in mounts


@given(
    drain=st.integers(0, 86400),
    executor=st.sampled_from(["InProcess", "Multiprocess", "Ray", "Simulated"]),
    shape=st.sampled_from([api.Parallelism(), api.Parallelism(data=2, tensor=2), api.Parallelism(data=2, workers_per_member=1)]),
    ordinal=st.integers(0, 1),
)
def test_the_kubelet_waits_longer_than_the_slowest_planned_end_takes(
    drain: int, executor: str, shape: api.Parallelism, ordinal: int
) -> None:
    """Also for a member that is never told to stop: it holds out as long as its leader may, and then stops its own."""
    copy = api.EngineCopy(executor=executor, parallelism=shape, drain=api.Drain(timeout_seconds=drain))
    manifest = pod(REPLICA, copy, name="e-0-abc-xyz", ordinal=ordinal, settings=SETTINGS)
    leader = drain + phase.SETTLE_SECONDS + phase.DRAIN_MARGIN_SECONDS + phase.STOP_SECONDS
    member = leader + phase.STOP_SECONDS
    assert manifest["spec"]["terminationGracePeriodSeconds"] >= member + REAPING_SECONDS


@given(data=st.integers(1, 64), workers=st.integers(1, 64), tensor=st.integers(1, 8))
def test_the_shared_memory_of_a_pod_is_what_the_queues_of_its_ranks_allocate(data: int, workers: int, tensor: int) -> None:
    """Restarts in place included: a rank's queues are given back before it is started again."""
    shape = api.Parallelism(data=data, tensor=tensor, pipeline=workers)
    size = shared_memory.member_shared_memory_bytes(api.EngineCopy(executor="Multiprocess", parallelism=shape), ordinal=0)
    assert size == shared_memory.OTHERS_BYTES + data * rank_shared_memory_bytes(local_workers=tensor * workers)


def test_the_pods_of_ray_have_the_ports_and_the_shared_memory_that_ray_is_started_with() -> None:
    copy = api.EngineCopy(model=api.Model(uri="hf://a/b"), executor="Ray")
    ports = {
        port["containerPort"]
        for port in pod(REPLICA, copy, name="m", ordinal=0, settings=SETTINGS)["spec"]["containers"][0]["ports"]
    }
    given = {"member": 1, "address": "10.0.0.2", "head": "10.0.0.1:6379", "workers": 1, "gpus": False, "name": "m"}
    started = " ".join(ray_node.command_line(**given, directory=Path("/x")))
    for number in names.RAY_NODE_PORTS.values():
        assert f"-port={number}" in started
        assert number in ports
    assert ray_node.HEAD_PORT == names.RAY_HEAD_PORT
    assert names.RAY_HEAD_PORT in ports
    assert f"--object-store-memory={shared_memory.RAY_STORE_BYTES}" in started


def test_what_a_leader_tells_of_placement_is_what_the_operator_reads() -> None:
    bundles = (manager_messages.Bundle(index=0, state="Pending", lacking="needs accelerator: 1, no node has it"),)
    told = manager_messages.RankPlacement(rank=1, incarnation=1, strategy="Pack", state="Pending", bundles=bundles)
    message = {"state": "Serving", "ranks": [], "placement": publications.placement([told])}
    written = rows.with_state(rows.Row(name="m", uid="u", address=""), message).fields()
    (group,) = msgspec.convert(written, ranks.Row).placement
    assert (group.rank, group.state) == (1, "Pending")
    assert group.bundles == (ranks.Bundle(index=0, lacking="needs accelerator: 1, no node has it"),)
    assert ranks.PENDING == UnitState.PENDING
    assert placement.PLACED == manager_messages.PlacementState.PLACED
    assert placement.LACKING == manager_messages.PlacementState.LACKING


def rendered() -> dict[str, Any]:
    return pod(REPLICA, api.EngineCopy(model=api.Model(uri="hf://a/b")), name="member", ordinal=0, settings=SETTINGS)


def test_the_monitor_reads_its_arguments_and_finds_its_credentials() -> None:
    container = rendered()["spec"]["initContainers"][0]
    given_by_kubelet = {entry["name"]: "x" for entry in container["env"]} | {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }
    settings = monitor.settings(container["args"], given_by_kubelet)
    assert (settings.replica, settings.replica_uid, settings.member) == ("e-0-abc", "replica-uid", "member")
    token = Path(next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "monitor-token"))
    assert settings.access.token_file == token / "token"
    assert settings.access.ca_file == token / "ca.crt"


def test_launcher_and_monitor_meet_at_one_socket_in_a_shared_folder() -> None:
    spec = rendered()["spec"]
    options = engine_options.parse(spec["containers"][0]["args"])
    container = spec["initContainers"][0]
    mounts = [{m["name"]: m["mountPath"] for m in found["volumeMounts"]} for found in (spec["containers"][0], container)]
    assert options.monitor_socket is not None
    assert mounts[0]["sockets"] == mounts[1]["sockets"] == str(options.monitor_socket.parent)
    assert f"--socket={options.monitor_socket}" in container["args"]


@pytest.mark.parametrize("class_", sorted(name for name, policy in failures.POLICIES.items() if policy.is_final))
def test_what_trying_again_cannot_help_is_called_the_same(class_: str) -> None:
    cause = termination.Cause(kind=class_, message="m")
    assert termination.exit_code(cause) == pod_state.EXIT_CONFIG
    assert failures.Failure(class_=class_).policy.is_final


OF_THE_LAUNCHER = {
    *(termination.SIGNAL, termination.OUT_OF_MEMORY, termination.EXIT_CODE, termination.EXCEPTION, termination.DEVICE_ERROR),
    *(termination.STARTUP_TIMEOUT, termination.HANG),
    *(termination.INVALID_CONFIG, termination.MODEL_NOT_FOUND, termination.CONTEXT_TOO_SMALL),
}
OF_THE_OPERATOR = {"Evicted", failures.NODE_LOST, failures.LOST, failures.REMOVED, failures.UNKNOWN}
"""Where there is no launcher to say it."""


def test_each_class_of_the_launcher_has_a_policy() -> None:
    assert set(failures.POLICIES) == OF_THE_LAUNCHER | OF_THE_OPERATOR


OF_A_START = {name for name, policy in failures.POLICIES.items() if policy.is_final} | {termination.STARTUP_TIMEOUT}
"""Of a process that has not served: nobody starts that again in place."""


@pytest.mark.parametrize("class_", sorted(OF_THE_LAUNCHER - OF_A_START))
def test_the_launcher_starts_in_place_what_the_table_says(class_: str) -> None:
    *_, rank = engine_units(api_servers=1, ranks=1, workers=0)
    rank.serves()
    rank.fall(None, now=0.0, restart_until=10.0)
    rank.died(termination.Cause(kind=class_, message="m"))
    assert (rank.state is UnitState.RESTARTING) == failures.POLICIES[class_].in_place
    assert not any(failures.POLICIES[late].in_place for late in OF_A_START | OF_THE_OPERATOR)


def test_the_last_words_are_understood(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    process = Process(role="engine-core", index=1, rank=1, incarnation=2)
    cause = termination.cause_of(process, pid=5, exit=termination.Exit(signal=9), failed=None, out_of_memory=False)
    log.write_bytes(termination.termination_message(cause))
    status = {"name": "engine", "state": {"terminated": {"exitCode": 137, "message": log.read_text()}}}
    failure = pod_state.pod_failure({"metadata": {"name": "p"}, "status": {"phase": "Failed", "containerStatuses": [status]}})
    assert failure is not None
    expected = {
        "class_": "Signal",
        "message": cause.message,
        "role": "engine-core",
        "rank": 1,
        "incarnation": 2,
        "pid": 5,
        "signal": 9,
    }
    assert {key: getattr(failure, key) for key in expected} == expected
    assert failure.exit_code is None


def test_a_row_that_the_monitor_writes_is_read() -> None:
    from enginehouse_operator.monitor import row as rows
    from enginehouse_operator.ranks import Row

    lost = rows.launcher_failure(pid=1, detected_time="2026-01-01T00:00:00.000001Z")
    written = rows.Row(name="p", uid="u", address="10.0.0.1", failures=(lost,))
    read = msgspec.convert(written.fields(), Row)
    assert (read.name, read.uid, read.failures[0].role) == ("p", "u", "launcher")
    assert read.failures[0].detected_time is not None


@pytest.mark.parametrize("ordinal", [0, 1])
def test_both_containers_log_as_the_operator_does(ordinal: int) -> None:
    copy = api.EngineCopy(executor="Simulated", parallelism=api.Parallelism(data=2, workers_per_member=1))
    for told in ("text", "json"):
        settings = msgspec.structs.replace(SETTINGS, log_format=told)
        spec = pod(REPLICA, copy, name="e-0-abc-xyz", ordinal=ordinal, settings=settings)["spec"]
        assert engine_options.parse(spec["containers"][0]["args"]).log_format == told
        environment = dict.fromkeys(("POD_UID", "POD_IP", "KUBERNETES_SERVICE_HOST"), "x") | {"KUBERNETES_SERVICE_PORT": "1"}
        assert monitor.settings(spec["initContainers"][0]["args"], environment).log_format == told
