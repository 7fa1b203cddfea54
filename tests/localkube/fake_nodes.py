"""Nodes without a kubelet, played by KWOK.

The one job: the KWOK controller's command line and the fake nodes' manifests.
The invariant kept: KWOK touches only nodes that carry the annotation, and pods bound to those; real nodes are the kubelet's.
"""

from __future__ import annotations

from .control_plane import Component
from .paths import ClusterPaths
from .spec import ClusterSpec

ANNOTATION = "kwok.x-k8s.io/node"


def name(number: int) -> str:
    """The name of a fake node."""
    return f"kwok-{number}"


def kwok(spec: ClusterSpec, *, paths: ClusterPaths) -> Component:
    """The controller that keeps fake nodes Ready and plays the life of the pods on them."""
    return Component("kwok", (
        f"{spec.binaries}/kwok", f"--kubeconfig={paths.config / 'kwok.kubeconfig'}",
        f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake", "--manage-all-nodes=false",
        f"--server-address={spec.network.node}:10247", f"--node-ip={spec.network.node}", "--node-lease-duration-seconds=40",
        f"--cidr={spec.network.pods}",
    ), {"HOME": str(paths.config)})  # fmt: skip


def manifest(number: int, *, gpus: int, tainted: bool) -> dict[str, object]:
    """A fake node with GPUs. Beside a real node it is tainted, so that only pods that mean it go there."""
    amounts = {"cpu": "32", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "1000", "nvidia.com/gpu": str(gpus)}
    labels = {"type": "kwok", "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name(number)}
    taints = [{"key": ANNOTATION, "value": "fake", "effect": "NoSchedule"}]
    annotations = {ANNOTATION: "fake", "node.alpha.kubernetes.io/ttl": "0"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name(number), "labels": labels, "annotations": annotations},
        "spec": {"taints": taints} if tainted else {},
        "status": {"capacity": amounts, "allocatable": amounts},
    }
