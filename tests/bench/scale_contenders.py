"""Who makes groups of two pods on nodes without a kubelet: Enginehouse, LeaderWorkerSet, KubeRay, and a client alone.

The one job: what each contender's groups look like, when one is ready, and the operator's process. Invariant: an operator runs on
the host with a service account's token, so that its requests can be told from all others and no limit is lifted for it.
Not done here: making groups, measuring (scale.py); rows of members (scripted_monitors.py).
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from first_times import Found, is_ready

from localkube.binaries import GoModule, ModuleFile, ensure_module
from localkube.cluster import Cluster
from localkube.errors import LocalkubeError
from localkube.installation import CHART, SYSTEM_NAMESPACE
from localkube.paths import CachePaths, cache_root
from localkube.pki import Authority
from unused_port import unused_port

NAMESPACE = "scale"
START_SECONDS = 90.0
_POLL_SECONDS = 0.2
_ACCOUNT = "manager"
_LWS = GoModule(
    "lws",
    {"lws-manager": "sigs.k8s.io/lws/cmd"},
    files={
        "crds.yaml": ModuleFile("sigs.k8s.io/lws", "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml"),
        "webhooks.yaml": ModuleFile("sigs.k8s.io/lws", "config/webhook/manifests.yaml"),
    },
)
_RAY = "github.com/ray-project/kuberay/ray-operator"
_KUBERAY = GoModule(
    "kuberay",
    {"kuberay-operator": _RAY},
    files={
        f"crd-{kind}.yaml": ModuleFile(_RAY, f"config/crd/bases/ray.io_{kind}.yaml")
        for kind in ("rayclusters", "rayjobs", "rayservices")
    },
)


@dataclass(frozen=True)
class Operator:
    """A running one, and the name under which the API server knows it."""

    process: subprocess.Popen[bytes]
    user: str


@dataclass(frozen=True)
class Contender:
    """``start`` brings the operator up; ``manifest`` is a group by name, ``is_ready`` asks an object at ``path``."""

    name: str
    path: str
    manifest: Callable[[str], dict[str, Any]]
    is_ready: Callable[[Found], bool]
    start: Callable[[Cluster, Path], Operator | None]
    makes_pods_itself: bool = False
    """No operator: a manifest is one pod."""


def bare_pods() -> Contender:
    """The floor: what the scheduler and the nodes need."""
    return Contender(
        name="pods",
        path=f"/api/v1/namespaces/{NAMESPACE}/pods",
        manifest=lambda name: {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": _pod()},
        is_ready=is_ready,
        start=lambda *_: None,
        makes_pods_itself=True,
    )


def engines() -> Contender:
    """InferenceEngines of one replica with two members."""
    return Contender(
        name="enginehouse",
        path=f"/apis/enginehouse.dev/v1alpha1/namespaces/{NAMESPACE}/inferenceengines",
        manifest=_engine,
        is_ready=is_ready,
        start=_start_enginehouse,
    )


def ray_clusters() -> Contender:
    """RayClusters of a head and a worker."""
    return Contender(
        name="kuberay",
        path=f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters",
        manifest=_ray_cluster,
        is_ready=lambda found: (found.status.state, found.status.ready_worker_replicas) == ("ready", 1),
        start=_start_kuberay,
    )


def leader_worker_sets() -> Contender:
    """LeaderWorkerSets of one group of two."""
    return Contender(
        name="lws",
        path=f"/apis/leaderworkerset.x-k8s.io/v1/namespaces/{NAMESPACE}/leaderworkersets",
        manifest=_leader_worker_set,
        is_ready=lambda found: found.status is not None and found.status.ready_replicas == 1 and found.status.is_true("Available"),
        start=_start_lws,
    )


def _pod() -> dict[str, Any]:
    return {"containers": [{"name": "engine", "image": "engine:1", "command": ["sleep", "inf"]}]}


def _engine(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "metadata": {"name": name},
        "spec": {"executor": "Simulated", "parallelism": {"tensor": 2, "workersPerMember": 1}},
    }


def _ray_cluster(name: str) -> dict[str, Any]:
    # Nothing of Ray is in these pods; their probes and commands are KubeRay's own.
    worker = {"groupName": "workers", "replicas": 1, "minReplicas": 1, "maxReplicas": 1, "rayStartParams": {}}
    template = {"spec": _pod()}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "annotations": {"ray.io/overwrite-container-cmd": "true"}},
        "spec": {
            "rayVersion": "2.46.0",
            "headGroupSpec": {"rayStartParams": {}, "template": template},
            "workerGroupSpecs": [worker | {"template": template}],
        },
    }


def _leader_worker_set(name: str) -> dict[str, Any]:
    template = {"spec": _pod()}
    group = {"size": 2, "restartPolicy": "RecreateGroupOnPodRestart", "leaderTemplate": template, "workerTemplate": template}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "leaderWorkerTemplate": group},
    }


def _start_enginehouse(cluster: Cluster, folder: Path) -> Operator:
    """As the chart installs it, but for its pods, which no node here would run."""
    named = (f"serviceAccount.name={_ACCOUNT}", "image.repository=operator", "image.tag=1", "engineImage=engine:1")
    settings = [argument for value in named for argument in ("--set-string", value)] + ["--set", "replicas=0"]
    cluster.helm("install", "enginehouse", str(CHART), "--namespace", SYSTEM_NAMESPACE, "--create-namespace", *settings)
    command = [sys.executable, "-m", "enginehouse_operator", "--engine-image=engine:1", "--monitor-image=operator:1"]
    command += ["--health-port=0", "--metrics-port=0", f"--lease-namespace={SYSTEM_NAMESPACE}"]
    started = _start(cluster, folder, command)
    _wait("the operator leads", started, lambda: "works on all namespaces" in (folder / "operator.log").read_text())
    return started


def _start_kuberay(cluster: Cluster, folder: Path) -> Operator:
    module = ensure_module(_KUBERAY, cache=CachePaths(cache_root()))
    _define(cluster, *sorted(module.glob("crd-*.yaml")), served="rayclusters.ray.io")
    _make_administrator(cluster)
    ports = [f"--metrics-addr=127.0.0.1:{unused_port()}", f"--health-probe-bind-address=127.0.0.1:{unused_port()}"]
    started = _start(cluster, folder, [str(module / "kuberay-operator"), "--enable-leader-election=false", *ports])
    _wait("KubeRay works", started, lambda: "Starting workers" in (folder / "operator.log").read_text())
    return started


def _start_lws(cluster: Cluster, folder: Path) -> Operator:
    module = ensure_module(_LWS, cache=CachePaths(cache_root()))
    _define(cluster, module / "crds.yaml", served="leaderworkersets.leaderworkerset.x-k8s.io")
    _make_administrator(cluster)
    port = unused_port()
    authority = Authority(folder / "webhook")
    authority.serving("tls", addresses=("127.0.0.1",))
    bundle = base64.b64encode((folder / "webhook" / "ca.crt").read_bytes()).decode()
    hooks = [_reached(found, port, bundle) for found in yaml.safe_load_all((module / "webhooks.yaml").read_text()) if found]
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(hooks))
    configuration = {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "internalCertManagement": {"enable": False},
        "leaderElection": {"leaderElect": False},
        "webhook": {"port": port, "host": "127.0.0.1", "certDir": str(folder / "webhook")},
        "metrics": {"bindAddress": f"127.0.0.1:{unused_port()}"},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{unused_port()}"},
    }
    (folder / "lws.yaml").write_text(yaml.safe_dump(configuration))
    started = _start(cluster, folder, [str(module / "lws-manager"), "--config", str(folder / "lws.yaml"), "--zap-log-level=2"])
    _wait("LeaderWorkerSet's webhooks listen", started, lambda: _listens(port))
    _wait("LeaderWorkerSet works", started, lambda: "Starting workers" in (folder / "operator.log").read_text())
    return started


def _reached(hooks: dict[str, Any], port: int, bundle: str) -> dict[str, Any]:
    """The webhooks of a process on this host; those of pods only for pods of a set, as in the project's own installation."""
    hooks["metadata"]["name"] = "lws-" + hooks["kind"].removesuffix("WebhookConfiguration").lower()
    for hook in hooks["webhooks"]:
        path = hook["clientConfig"].pop("service")["path"]
        hook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": bundle}
        if "pod" in path:
            of_a_set = {"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}
            hook["objectSelector"] = {"matchExpressions": [of_a_set]}
    return hooks


def _define(cluster: Cluster, *files: Path, served: str) -> None:
    """Install definitions, and wait until the API server serves a kind: an operator that starts before sleeps for seconds."""
    cluster.kubectl("apply", "--server-side", *(argument for file in files for argument in ("-f", str(file))))
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            cluster.kubectl("get", served, "--all-namespaces")
        except LocalkubeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def _make_administrator(cluster: Cluster) -> None:
    """A peer's rights are no matter here."""
    cluster.kubectl("create", "namespace", SYSTEM_NAMESPACE)
    cluster.kubectl("-n", SYSTEM_NAMESPACE, "create", "serviceaccount", _ACCOUNT)
    account = f"--serviceaccount={SYSTEM_NAMESPACE}:{_ACCOUNT}"
    cluster.kubectl("create", "clusterrolebinding", "manager", "--clusterrole=cluster-admin", account)


def _start(cluster: Cluster, folder: Path, command: list[str]) -> Operator:
    token = cluster.kubectl("-n", SYSTEM_NAMESPACE, "create", "token", _ACCOUNT, "--duration=4h").strip()
    kubeconfig = yaml.safe_load(cluster.kubeconfig.read_text())
    kubeconfig["users"] = [{"name": entry["name"], "user": {"token": token}} for entry in kubeconfig["users"]]
    path = folder / "operator.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(kubeconfig))
    with (folder / "operator.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "KUBECONFIG": str(path)})
    return Operator(process, f"system:serviceaccount:{SYSTEM_NAMESPACE}:{_ACCOUNT}")


def _wait(what: str, operator: Operator, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        if operator.process.poll() is not None:
            raise RuntimeError(f"{what}: the process ended with {operator.process.returncode}")
        if time.monotonic() > deadline:
            operator.process.kill()
            raise RuntimeError(f"{what}: not within {START_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
