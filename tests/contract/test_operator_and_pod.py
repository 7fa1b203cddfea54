"""What the operator writes into a pod is what launcher and monitor read: flags, ports, sockets, rights, words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine import flags as engine_flags
from enginehouse_engine.launcher import termination
from enginehouse_engine.launcher.process import Process
from enginehouse_engine.shared_memory_size import rank_shared_memory_bytes
from enginehouse_operator import api, failures, names, pod_state
from enginehouse_operator.monitor import __main__ as monitor
from enginehouse_operator.wanted import shared_memory
from enginehouse_operator.wanted.arguments import arguments
from enginehouse_operator.wanted.metadata import Owner
from enginehouse_operator.wanted.pods import Images, pod

REPLICA = Owner(kind=names.REPLICA_KIND, name="e-0-abc", uid="replica-uid", namespace="n", engine="e")
IMAGES = Images(engine="e:1", monitor="o:1", pull_policy="Never")

copies = st.builds(
    api.EngineCopy,
    model=st.builds(
        api.Model,
        uri=st.sampled_from(["hf://a/b", "pvc://claim/dir/m.gguf", "pvc://claim", "file:///models/m"]),
        served_name=st.sampled_from([None, "name"]),
    ),
    executor=st.sampled_from(["InProcess", "Multiprocess", "Simulated"]),
    parallelism=st.builds(api.Parallelism, data=st.integers(1, 64)),
    api_servers=st.integers(1, 64),
    memory=st.builds(api.Memory, utilization_percent=st.integers(1, 100)),
    context=st.one_of(
        st.builds(api.Context, min_length=st.integers(1, 100)),
        st.builds(api.Context, min_length=st.integers(1, 100), max_length=st.integers(100, 10**8)),
    ),
    startup=st.builds(api.Startup, timeout_seconds=st.integers(1, 86400)),
    drain=st.builds(api.Drain, timeout_seconds=st.integers(0, 86400)),
    auth=st.sampled_from([None, api.Auth(api_key_secret_ref=api.KeyRef(name="s", key="k"))]),
)


@given(copies)
def test_the_launcher_reads_what_the_spec_says(copy: api.EngineCopy) -> None:
    options = engine_flags.parse(arguments(REPLICA, copy))
    assert options.executor == copy.executor
    assert options.parallel.data == copy.parallelism.data
    assert options.api_servers == copy.api_servers
    assert options.memory_utilization_percent == copy.memory.utilization_percent
    assert options.max_context_length == copy.context.max_length
    assert options.min_context_length == copy.context.min_length
    assert options.startup_timeout_seconds == copy.startup.timeout_seconds
    assert options.drain_timeout_seconds == copy.drain.timeout_seconds
    assert (options.replica_uid, options.host, options.port) == (REPLICA.uid, "0.0.0.0", names.HTTP_PORT)
    assert (options.api_key_file is None) == (copy.auth is None)
    assert copy.model.served_name in (None, options.served_model_name)
    assert options.served_model_name


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_the_launchers_of_several_members_read_their_number_and_their_leader(data: int, held: int, draw: st.DataObject) -> None:
    shape = api.Parallelism(data=data * held, workers_per_member=held)
    ordinal = draw.draw(st.integers(0, data - 1))
    options = engine_flags.parse(arguments(REPLICA, api.EngineCopy(executor="Simulated", parallelism=shape), ordinal=ordinal))
    told = (options.members, options.member, options.workers_per_member, bool(options.leader))
    assert told == ((data, ordinal, held, True) if data > 1 else (1, 0, None, False))


@given(data=st.integers(1, 64), workers=st.integers(1, 64), tensor=st.integers(1, 8))
def test_the_shared_memory_of_a_pod_is_what_the_queues_of_its_ranks_allocate(data: int, workers: int, tensor: int) -> None:
    """Restarts in place included: a rank's queues are given back before it is started again."""
    shape = api.Parallelism(data=data, tensor=tensor, pipeline=workers)
    size = shared_memory.member_shared_memory_bytes(api.EngineCopy(executor="Multiprocess", parallelism=shape), ordinal=0)
    assert size == shared_memory.OTHERS_BYTES + data * rank_shared_memory_bytes(local_workers=tensor * workers)


def rendered() -> dict[str, Any]:
    return pod(REPLICA, api.EngineCopy(model=api.Model(uri="hf://a/b")), name="member", ordinal=0, images=IMAGES)


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
    options = engine_flags.parse(spec["containers"][0]["args"])
    container = spec["initContainers"][0]
    mounts = [{m["name"]: m["mountPath"] for m in found["volumeMounts"]} for found in (spec["containers"][0], container)]
    assert options.monitor_socket is not None
    assert mounts[0]["sockets"] == mounts[1]["sockets"] == str(options.monitor_socket.parent)
    assert f"--socket={options.monitor_socket}" in container["args"]


@pytest.mark.parametrize("class_", sorted(failures.PERMANENT_CLASSES))
def test_what_trying_again_cannot_help_is_called_the_same(class_: str) -> None:
    cause = termination.Cause(kind=class_, message="m")
    assert termination.exit_code(cause) == pod_state.EXIT_CONFIG
    assert failures.Failure(class_=class_).is_permanent


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
