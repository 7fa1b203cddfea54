"""Clusters, as tests and the command line see them.

The one job: start, find, describe and stop a cluster.
The invariant kept: starting twice is harmless; stopping works from every state, also after a crash in the middle of a start,
and leaves nothing but caches. Nothing is remembered but the cluster's folder; whether it lives is a lock its processes hold.

    from localkube import cluster
    c = cluster.start("test", control_plane_only=True)
    c.kubeconfig, c.audit_log, c.kubectl("get", "namespaces")
    c.stop()
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from . import image_store, preflight
from .binaries import KUBERNETES, ensure_binaries
from .errors import LocalkubeError
from .locks import locked, try_lock
from .network import take_slot
from .paths import CachePaths, ClusterPaths, cache_root, cluster_paths
from .processes import MARKER_VARIABLE, log_tail, processes_of
from .removal import remove
from .spec import ClusterSpec, read_spec
from .steps import report, step

_START_SECONDS = 240.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.03


@dataclass(frozen=True)
class Cluster:
    """A cluster that answers. One that KUBECONFIG names has no files of ours and is never stopped by us."""

    name: str
    kubeconfig: Path
    binaries: Path
    owned: bool = True
    audit_log: Path | None = None
    logs: Path | None = None
    node_address: str | None = None
    marker: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with KUBECONFIG and PATH for kubectl and helm."""
        path = f"{self.binaries}:{os.environ.get('PATH', '')}"
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60.0) -> str:
        """Run kubectl and return what it prints; its failure is a LocalkubeError with its words."""
        return self._run("kubectl", *arguments, stdin=stdin, timeout_seconds=timeout_seconds)

    def helm(self, *arguments: str, timeout_seconds: float = 120.0) -> str:
        """The same of helm."""
        return self._run("helm", *arguments, stdin=None, timeout_seconds=timeout_seconds)

    def until_served(self, *definitions: str) -> None:
        """Until definitions (arguments of `kubectl wait`) are established: their kinds can be used."""
        # One that nobody has looked at yet has conditions that kubectl cannot read.
        for condition in ("jsonpath={.status.conditions[0].type}", "condition=Established"):
            self.kubectl("wait", f"--for={condition}", *definitions, "--timeout=60s", timeout_seconds=70)

    def _run(self, program: str, *arguments: str, stdin: str | None, timeout_seconds: float) -> str:
        command = [str(self.binaries / program), *arguments]
        shown = f"{program} {' '.join(arguments)}"
        try:
            done = subprocess.run(
                command, input=stdin, env=self.environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LocalkubeError(f"{shown} did not end within {timeout_seconds:.0f} s") from error
        if done.returncode != 0:
            raise LocalkubeError(f"{shown} exited {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def processes(self) -> dict[int, str]:
        """Every process of this cluster, pods' included, by host pid."""
        return processes_of(self.marker) if self.marker else {}

    def kill(self, component: str) -> int:
        """SIGKILL a component such as `kube-apiserver`; its owner starts it again at once. Returns the pid it had."""
        for pid, name in self.processes().items():
            if name == component[:15]:  # the kernel keeps 15 bytes of a name
                os.kill(pid, signal.SIGKILL)
                return pid
        raise LocalkubeError(f"cluster {self.name} has no process {component}")

    def stop(self) -> None:
        """Stop the cluster if it is ours."""
        if self.owned:
            stop(self.name)


def from_environment_or_start(
    name: str, *, control_plane_only: bool = False, controller_manager: bool = False, fake_nodes: int = 0, fake_gpus: int = 8
) -> Cluster:
    """The cluster KUBECONFIG names when that is set, else a local one."""
    kubeconfig = os.environ.get("KUBECONFIG")
    if kubeconfig:
        path = Path(kubeconfig)
        if not path.is_file():
            raise LocalkubeError(f"KUBECONFIG={kubeconfig} is no file: unset it for a local cluster")
        return Cluster("external", path, ensure_binaries(CachePaths(cache_root())), owned=False)
    return start(
        name, control_plane_only=control_plane_only, controller_manager=controller_manager,
        fake_nodes=fake_nodes, fake_gpus=fake_gpus,
    )  # fmt: skip


def start(
    name: str, *, control_plane_only: bool = False, controller_manager: bool = False, fake_nodes: int = 0, fake_gpus: int = 8,
    stock_limits: bool = False, kubernetes: str = KUBERNETES,
) -> Cluster:  # fmt: skip
    """Start the cluster unless it runs, and return once it is ready.

    `controller_manager` and `fake_nodes` matter for a control plane alone: a full cluster has the first, fake nodes need it.
    `kubernetes` is the version of the control plane; a kubelet has always the default one.
    """
    paths = cluster_paths(name)
    full = not control_plane_only
    if full:
        preflight.check_full_cluster()
    else:
        preflight.check_linux()
    preflight.check_disk(paths.cache.home, need_bytes=preflight.GIB, what=f"cluster {name}")
    binaries = ensure_binaries(paths.cache, kubernetes=kubernetes)
    if full:
        image_store.ensure_pause(paths.cache)
    wanted = ClusterSpec(
        name=name, marker=f"{name}:{uuid.uuid4()}", slot=-1, binaries=str(binaries), full=full,
        controller_manager=full or controller_manager or fake_nodes > 0, fake_nodes=fake_nodes, fake_gpus=fake_gpus,
        stock_limits=stock_limits, kubernetes=kubernetes,
    )  # fmt: skip
    with locked(paths.lock, timeout_seconds=_STOP_SECONDS, wanted=f"cluster {name}"):
        spec = read_spec(paths) if is_alive(paths) else None
        if spec is None:
            remove(paths)
            spec = _spawn(wanted, paths=paths)
        else:
            _check_covers(spec, wanted=wanted)
    _follow(spec, paths=paths)
    return _describe(spec, paths=paths)


def find(name: str) -> Cluster | None:
    """The running cluster of this name, if it runs."""
    paths = cluster_paths(name)
    spec = read_spec(paths)
    return _describe(spec, paths=paths) if spec is not None and is_alive(paths) else None


def names() -> list[str]:
    """Every cluster that runs or left something behind."""
    folder = CachePaths(cache_root()).clusters
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def is_alive(paths: ClusterPaths) -> bool:
    """Whether the cluster's owner lives."""
    if not paths.alive.exists():
        return False
    descriptor = try_lock(paths.alive)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def stop(name: str) -> None:
    """End the cluster and remove every trace of it; harmless when there is none."""
    paths = cluster_paths(name)
    with locked(paths.lock, timeout_seconds=_STOP_SECONDS, wanted=f"stopping cluster {name}"), step(f"stopped {name}"):
        remove(paths)


def _spawn(wanted: ClusterSpec, *, paths: ClusterPaths) -> ClusterSpec:
    network, slot = take_slot(full=wanted.full)
    spec = ClusterSpec(**{**wanted.__dict__, "slot": network.slot})
    paths.logs.mkdir(parents=True)
    # Before any process: whatever happens from here on, a stop knows what to look for.
    spec.write(paths)
    if spec.full:
        image_store.clone(paths.cache, target=paths.containerd)
    alive = try_lock(paths.alive)
    host_network = os.open("/proc/self/ns/net", os.O_RDONLY)
    if alive is None:
        raise LocalkubeError(f"somebody else locked {paths.alive} in the middle of a start")
    unshare = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc") if spec.full else ()
    supervisor = (sys.executable, "-m", "localkube.supervisor", spec.name, str(host_network))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), MARKER_VARIABLE: spec.marker}
    try:
        with (paths.logs / "supervisor.log").open("ab") as log:
            # Adopted by the machine's process 1: the cluster outlives the command that started it.
            subprocess.run(
                ["setsid", "--fork", *unshare, *supervisor], env=environment, cwd="/", check=True, timeout=30,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(alive, slot.fileno(), host_network),
            )  # fmt: skip
    finally:
        slot.close()
        for descriptor in (alive, host_network):
            os.close(descriptor)
    return spec


def _follow(spec: ClusterSpec, *, paths: ClusterPaths) -> None:
    """Print the supervisor's steps until it says that the cluster is ready."""
    deadline = time.monotonic() + _START_SECONDS
    seen = 0
    while True:
        alive = is_alive(paths)  # before reading: the last words of one that just died are not missed
        lines = paths.steps.read_text().splitlines() if paths.steps.exists() else []
        for line in lines[seen:]:
            event = json.loads(line)
            if "failed" in event:
                raise LocalkubeError(f"cluster {spec.name} did not start: {event['failed']}\nAll logs: {paths.logs}")
            if "ready" in event:
                return
            report(event["text"], seconds=event["seconds"])
        seen = len(lines)
        if not alive:
            tail = log_tail(paths.logs / "supervisor.log", lines=15)
            raise LocalkubeError(f"cluster {spec.name} died while it started:\n{tail}\nAll logs: {paths.logs}")
        if time.monotonic() > deadline:
            raise LocalkubeError(f"cluster {spec.name} is not ready after {_START_SECONDS:.0f} s, logs: {paths.logs}")
        time.sleep(_POLL_SECONDS)


def _check_covers(spec: ClusterSpec, *, wanted: ClusterSpec) -> None:
    lacks = [
        word
        for word, missing in (
            ("a kubelet", wanted.full and not spec.full),
            ("a controller manager", wanted.controller_manager and not spec.controller_manager),
            (f"{wanted.fake_nodes} KWOK nodes", wanted.fake_nodes > spec.fake_nodes),
            (f"Kubernetes {wanted.kubernetes}", wanted.kubernetes != spec.kubernetes),
        )
        if missing
    ]
    if lacks:
        raise LocalkubeError(f"cluster {spec.name} runs without {' and '.join(lacks)}: stop it first, or use another name")


def _describe(spec: ClusterSpec, *, paths: ClusterPaths) -> Cluster:
    return Cluster(
        spec.name, paths.kubeconfig, Path(spec.binaries),
        audit_log=paths.audit_log, logs=paths.logs, node_address=spec.network.node, marker=spec.marker,
    )  # fmt: skip
