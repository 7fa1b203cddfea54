"""The local cluster itself: starting twice, stopping from every state, and leaving nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from localkube import cluster, images
from localkube.errors import LocalkubeError
from localkube.paths import CachePaths, cache_root, cluster_paths
from localkube.processes import processes_of
from localkube.spec import read_spec

pytestmark = pytest.mark.cluster
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a kubelet needs root")
NAMES = ("lkone", "lktwo")
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class World:
    """Everything on this machine that a cluster of NAMES could leave behind."""

    processes: frozenset[str]
    mounts: frozenset[str]
    interfaces: frozenset[str]
    routes: frozenset[str]
    nftables: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]


def _ours(line: str) -> bool:
    return any(name in line for name in NAMES)


def _lines(*command: str) -> frozenset[str]:
    return frozenset(subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines())


def _processes() -> Iterator[str]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes() + (folder / "cgroup").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if folder.name != str(os.getpid()) and re.search(rb"lkone|lktwo", line):
            yield f"{folder.name} {line[:200]!r}"


def _world() -> World:
    watched = (Path("/run"), Path("/var/lib"), Path("/var/log"), Path("/etc"), Path("/opt"), CachePaths(cache_root()).clusters)
    return World(
        processes=frozenset(_processes()),
        mounts=frozenset(filter(_ours, Path("/proc/self/mountinfo").read_text().splitlines())),
        interfaces=frozenset(filter(_ours, os.listdir("/sys/class/net"))),
        routes=frozenset(filter(_ours, _lines("ip", "route"))),
        nftables=_lines("nft", "list", "tables") if os.geteuid() == 0 else frozenset(),
        cgroups=frozenset(str(folder) for folder in Path("/sys/fs/cgroup").rglob("enginehouse-*-lk*")),
        files=frozenset(str(path) for folder in watched if folder.is_dir() for path in folder.iterdir() if _strange(path)),
    )


def _strange(path: Path) -> bool:
    """What another cluster or test beside us makes is none of our business."""
    return path.parent.name != "clusters" or _ours(path.name)


@pytest.fixture
def clean() -> Iterator[Callable[[], None]]:
    """Nothing before; the returned check compares with now and runs at the end too."""
    for name in NAMES:
        cluster.stop(name)
    before = _world()

    def check() -> None:
        after = _world()
        for field in fields(World):
            assert getattr(after, field.name) == getattr(before, field.name), field.name

    yield check
    for name in NAMES:
        cluster.stop(name)
    check()


def _wait(condition: Callable[[], object], *, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)


def test_control_plane_starts_twice_counts_writes_and_leaves_nothing(
    clean: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cluster.start("lkone", control_plane_only=True)
    again = cluster.start("lkone", control_plane_only=True)
    assert again == first
    first.kubectl("create", "configmap", "one")
    assert first.audit_log is not None
    writes = [line for line in first.audit_log.read_text().splitlines() if '"verb":"create"' in line and "/configmaps" in line]
    assert len([line for line in writes if "localkube-admin" in line]) == 1
    with pytest.raises(LocalkubeError, match="runs without a controller manager"):
        cluster.start("lkone", control_plane_only=True, controller_manager=True)
    monkeypatch.setattr(cluster, "ensure_binaries", lambda *_, **__: first.binaries)  # nothing is built to be refused
    with pytest.raises(LocalkubeError, match=r"runs without Kubernetes 1\.36"):
        cluster.start("lkone", control_plane_only=True, kubernetes="1.36")
    first.stop()
    clean()
    first.stop()  # harmless


def test_fake_nodes_run_pods_that_ask_for_gpus(clean: Callable[[], None]) -> None:
    started = cluster.start("lkone", control_plane_only=True, fake_nodes=2, fake_gpus=4)
    pod = """{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "c", "image": "none", "resources": {"limits": {"nvidia.com/gpu": 4}}}]}}"""
    started.kubectl("create", "--filename=-", stdin=pod)
    started.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=30s")


def test_killed_apiserver_comes_back_with_its_data(clean: Callable[[], None]) -> None:
    started = cluster.start("lkone", control_plane_only=True)
    started.kubectl("create", "configmap", "kept")
    pid = started.kill("kube-apiserver")
    _wait(lambda: "kube-apiserver" in started.processes().values() and pid not in started.processes(), what="apiserver")

    def answers() -> bool:
        try:
            return "kept" in started.kubectl("get", "configmap", "kept")
        except LocalkubeError:
            return False

    _wait(answers, what="the config map")


@needs_root
def test_two_full_clusters_side_by_side(clean: Callable[[], None]) -> None:
    one, two = cluster.start("lkone"), cluster.start("lktwo", fake_nodes=1)
    assert one.node_address != two.node_address
    assert one.kubectl("get", "nodes", "--output=name").split() == ["node/lkone-0"]
    assert two.kubectl("get", "nodes", "--output=name").split() == ["node/kwok-0", "node/lktwo-0"]
    one.stop()
    two.kubectl("get", "--raw=/readyz")


@needs_root
def test_pod_with_sidecar_and_volumes_is_reached_from_the_host(clean: Callable[[], None], tmp_path: Path) -> None:
    (image,) = images.build_and_import(CachePaths(cache_root()), targets=("operator",))
    tmp_path.chmod(0o755)
    (tmp_path / "word").write_text("from the host")
    started = cluster.start("lkone")
    started.kubectl("create", "--filename=-", stdin=_POD % {"image": image, "folder": tmp_path})
    started.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    assert "sidecar" in started.kubectl("logs", "web", "--container=sidecar")
    assert started.kubectl("exec", "web", "--container=web", "--", "id", "-u").strip() == "10001"
    service = started.kubectl("get", "service", "web", "--output=jsonpath={.spec.clusterIP}")
    pod = started.kubectl("get", "pod", "web", "--output=jsonpath={.status.podIP}")

    def served(address: str) -> Callable[[], bool]:
        def answers() -> bool:
            try:
                with urllib.request.urlopen(f"http://{address}/word", timeout=2) as response:
                    return bool(response.read() == b"from the host")
            except OSError:
                return False

        return answers

    _wait(served(f"{pod}:8000"), what="the pod", seconds=10)
    _wait(served(service), what="the service", seconds=10)
    assert "python" in started.processes().values()
    started.stop()
    clean()
    assert (tmp_path / "word").read_text() == "from the host"  # hostPath folders are not ours to clean


# Which process dies, and what has happened when it does.
_MOMENTS = {
    "the outer process before anything": ("unshare", lambda name: cluster_paths(name).spec.exists()),
    "the outer process after the namespaces": ("unshare", lambda name: cluster_paths(name).steps.exists()),
    "the supervisor after the certificates": ("python", lambda name: cluster_paths(name).kubeconfig.exists()),
    "etcd before the apiserver is ready": ("etcd", lambda name: (cluster_paths(name).root / "etcd").exists()),
    "the outer process when it ran": ("unshare", lambda name: "ready" in cluster_paths(name).steps.read_text()),
}


@needs_root
@pytest.mark.parametrize("moment", _MOMENTS)
def test_killed_in_the_middle_of_a_start_then_stopped(clean: Callable[[], None], moment: str) -> None:
    victim, reached = _MOMENTS[moment]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "localkube", "start", "lkone"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as starter:
        paths = cluster_paths("lkone")
        _wait(lambda: read_spec(paths) is not None and _quietly(reached, "lkone"), what=moment)
        spec = read_spec(paths)
        assert spec is not None

        def kill() -> bool:
            victims = [pid for pid, name in processes_of(spec.marker).items() if name.startswith(victim)]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            return bool(victims)

        _wait(kill, what=victim)
        starter.kill()
    cluster.stop("lkone")
    clean()


def _quietly(condition: Callable[[str], bool], name: str) -> bool:
    try:
        return condition(name)
    except FileNotFoundError:
        return False


_POD = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  restartPolicy: Never
  securityContext: {runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
  initContainers:
  - name: sidecar
    image: %(image)s
    restartPolicy: Always
    command: [python, -c, "print('sidecar'); import signal; signal.pause()"]
    securityContext: &restricted {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
  containers:
  - name: web
    image: %(image)s
    command: [python, -m, http.server, "8000"]
    workingDir: /data
    readinessProbe: {httpGet: {path: /word, port: 8000}, periodSeconds: 1}
    securityContext: *restricted
    volumeMounts: [{name: data, mountPath: /data, readOnly: true}, {name: memory, mountPath: /dev/shm}]
  volumes:
  - {name: data, hostPath: {path: %(folder)s}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 64Mi}}
"""
