"""What a cluster was asked to be.

The one job: carry a cluster's description from the process that starts it to the one that runs it, as JSON.
The invariant kept: written once per start; everything else about the cluster is derived from it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from .binaries import KUBERNETES
from .network import Network
from .paths import CachePaths, ClusterPaths


@dataclass(frozen=True)
class ClusterSpec:
    """One cluster, fully described."""

    name: str
    marker: str  # in the environment of every process of this start, so that leftovers can be told from strangers
    slot: int
    binaries: str
    full: bool = False
    controller_manager: bool = False
    fake_nodes: int = 0
    fake_gpus: int = 8
    stock_limits: bool = False  # on the controller manager's and the scheduler's own requests, as Kubernetes comes
    kubernetes: str = KUBERNETES

    @property
    def network(self) -> Network:
        """The cluster's addresses."""
        return Network(self.slot, self.full)

    @property
    def node_name(self) -> str:
        """The name of the one real node."""
        return f"{self.name}-0"

    @property
    def cgroup(self) -> str:
        """The cgroup folder of all its pods, in every hierarchy."""
        return f"enginehouse-{self.slot}-{self.name}"

    @property
    def host_interface(self) -> str:
        """The host's end of the link into the cluster."""
        return f"eh{self.slot}-{self.name}"

    def paths(self, cache: CachePaths) -> ClusterPaths:
        """The cluster's files."""
        return ClusterPaths(self.name, cache)

    def write(self, paths: ClusterPaths) -> None:
        """Store the description in the cluster's folder."""
        paths.spec.write_text(json.dumps(dataclasses.asdict(self)))


def read_spec(paths: ClusterPaths) -> ClusterSpec | None:
    """The stored description, or None when there is none (or a start died while writing it). Another version of this tree, which
    shares the cache, may have stored more."""
    known = {field.name for field in dataclasses.fields(ClusterSpec)}
    try:
        stored = json.loads(paths.spec.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return ClusterSpec(**{name: value for name, value in stored.items() if name in known})
