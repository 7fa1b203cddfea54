"""The process that owns a running cluster.

The one job: bring the components up in order, say so step by step, then reap and restart until killed.
The invariant kept: all of the cluster lives below this process; killing it (or the `unshare` above it) ends the cluster,
at every point of the start. It never cleans up behind itself: it may be killed at any time, so `stop` does that.

Run by cluster.py as `python -m localkube.supervisor NAME HOST_NETWORK_DESCRIPTOR`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import control_plane, fake_nodes, namespaces, node
from .api import ApiClient
from .errors import LocalkubeError
from .paths import ClusterPaths, cluster_paths
from .processes import Owner
from .spec import ClusterSpec, read_spec

_API_SECONDS = 60.0
_NODE_SECONDS = 90.0


class Supervisor:
    """Brings one cluster up and keeps it."""

    def __init__(self, spec: ClusterSpec, *, paths: ClusterPaths) -> None:
        self._spec = spec
        self._paths = paths
        self._owner = Owner(paths, marker=spec.marker)
        self._api = ApiClient(spec.network.node, paths.pki)

    def run(self, host_network: int) -> None:
        """Start everything, then stay."""
        try:
            self._start(host_network)
        except LocalkubeError as error:
            self._tell(failed=str(error))
            return
        self._tell(ready=True)
        self._owner.run_forever()

    def _start(self, host_network: int) -> None:
        spec, paths, owner = self._spec, self._paths, self._owner
        if spec.full:
            with self._step("namespaces, link to the host"):
                namespaces.enter(spec, paths=paths, host_network=host_network)
        with self._step("certificates"):
            control_plane.write_files(spec, paths=paths)
        with self._step("etcd, kube-apiserver"):
            if spec.full:
                node.write_files(spec, paths=paths)
                owner.start(node.containerd(paths=paths))
            owner.start(control_plane.etcd(spec, paths=paths))
            owner.start(control_plane.apiserver(spec, paths=paths))
            self._wait_api("/readyz", missing="kube-apiserver is not ready", log_of="kube-apiserver")
        if spec.controller_manager:
            with self._step("kube-controller-manager, kube-scheduler" if self._schedules else "kube-controller-manager"):
                owner.start(control_plane.controller_manager(spec, paths=paths))
                if self._schedules:
                    owner.start(control_plane.scheduler(spec, paths=paths))
                if spec.full:
                    node.create_objects(self._api)
                    for component in node.components(spec, paths=paths):
                        owner.start(component)
                # The first thing the controller manager does that somebody waits for: without it no pod is admitted.
                account = "/api/v1/namespaces/default/serviceaccounts/default"
                self._wait_api(account, missing="no default service account", log_of="kube-controller-manager")
        if spec.fake_nodes:
            with self._step(f"{spec.fake_nodes} KWOK nodes with {spec.fake_gpus} GPUs each"):
                owner.start(fake_nodes.kwok(spec, paths=paths))
                for number in range(spec.fake_nodes):
                    self._api.create("/api/v1/nodes", fake_nodes.manifest(number, gpus=spec.fake_gpus, tainted=spec.full))
                for number in range(spec.fake_nodes):
                    self._wait_node(fake_nodes.name(number), log_of="kwok")
        if spec.full:
            with self._step(f"node {spec.node_name}, kube-proxy, CoreDNS"):
                self._wait_node(spec.node_name, log_of="kubelet")

    @property
    def _schedules(self) -> bool:
        return self._spec.full or self._spec.fake_nodes > 0

    def _wait_api(self, path: str, *, missing: str, log_of: str) -> None:
        self._owner.wait(lambda: self._api.ready(path), timeout_seconds=_API_SECONDS, missing=missing, log_of=log_of)

    def _wait_node(self, name: str, *, log_of: str) -> None:
        self._owner.wait(
            lambda: node.is_ready(self._api, name=name),
            timeout_seconds=_NODE_SECONDS, missing=f"node {name} is not Ready", log_of=log_of,
        )  # fmt: skip

    @contextmanager
    def _step(self, text: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._tell(text=text, seconds=time.monotonic() - began)

    def _tell(self, **event: object) -> None:
        with self._paths.steps.open("a") as steps:
            steps.write(json.dumps(event) + "\n")


def main(arguments: list[str]) -> int:
    """Run the supervisor of the named cluster; returns only when the cluster has failed."""
    name, host_network = arguments
    # A terminal that goes away is no reason to end a cluster, and process 1 of a namespace needs handlers to be told anything.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    paths = cluster_paths(name)
    spec = read_spec(paths)
    if spec is None:
        raise LocalkubeError(f"no cluster is described in {paths.spec}")
    Supervisor(spec, paths=paths).run(int(host_network))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
