"""The one real node: containerd, kubelet, kube-proxy and CoreDNS.

The one job: their configuration files, command lines and the few API objects they need.
The invariant kept: every path they write lies in the cluster's folder or on a memory file system of its mount namespace.
Not done here: namespaces and mounts (namespaces.py), images (image_store.py).
"""

from __future__ import annotations

import http.client
import json

from .api import ApiClient, ApiError
from .control_plane import Component
from .paths import ClusterPaths
from .spec import ClusterSpec

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
PAUSE_IMAGE = "localhost/pause:1"

# restrict_oom_score_adj: where CAP_SYS_RESOURCE is missing every sandbox otherwise dies with
# "can't get final child's PID from pipe: EOF".
_CONTAINERD = """version = 2
root = "{root}"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.restart", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.native", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "/run/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
"""

_COREFILE = """.:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods verified
        ttl 5
    }}
    cache 5
}}
"""


def containerd_config(root: str, *, cni: str, cri: bool = True) -> str:
    """containerd's configuration for a root folder of its own; without `cri` it serves images alone."""
    text = _CONTAINERD.format(root=root, socket=CONTAINERD_SOCKET, pause=PAUSE_IMAGE, cni=cni)
    return text if cri else text.replace("disabled_plugins = [", 'disabled_plugins = ["io.containerd.grpc.v1.cri",')


def write_files(spec: ClusterSpec, *, paths: ClusterPaths) -> None:
    """Everything the node's components read."""
    network, config = spec.network, paths.config
    cni = config / "cni"
    cni.mkdir(parents=True, exist_ok=True)
    (config / "containerd.toml").write_text(containerd_config(str(paths.containerd), cni=str(cni)))
    bridge = {
        "type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": network.pods}]], "routes": [{"dst": "0.0.0.0/0"}],
                 "dataDir": "/run/cni-addresses"},
    }  # fmt: skip
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    (cni / "10-bridge.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "localkube", "plugins": plugins}))
    (config / "resolv.conf").write_text(f"nameserver {network.node}\n")
    (config / "kubelet.json").write_text(json.dumps(_kubelet(spec, paths=paths), indent=1))
    (config / "kube-proxy.json").write_text(json.dumps(_kube_proxy(spec, paths=paths), indent=1))
    kubeconfig = config / "coredns.kubeconfig"
    (config / "Corefile").write_text(_COREFILE.format(address=network.node, kubeconfig=kubeconfig))


def containerd(*, paths: ClusterPaths) -> Component:
    """The container runtime."""
    return Component("containerd", ("containerd", "--config", str(paths.config / "containerd.toml")))


def components(spec: ClusterSpec, *, paths: ClusterPaths) -> tuple[Component, ...]:
    """What starts once the apiserver answers."""
    kubelet = (
        f"{spec.binaries}/kubelet", f"--config={paths.config / 'kubelet.json'}",
        f"--kubeconfig={paths.config / 'kubelet.kubeconfig'}", f"--hostname-override={spec.node_name}",
        f"--node-ip={spec.network.node}", "--root-dir=/var/lib/kubelet", f"--cert-dir={paths.pki}",
    )  # fmt: skip
    return (
        Component("kubelet", kubelet),
        Component("kube-proxy", (f"{spec.binaries}/kube-proxy", f"--config={paths.config / 'kube-proxy.json'}")),
        Component("coredns", (f"{spec.binaries}/coredns", "-conf", str(paths.config / "Corefile"))),
    )


def create_objects(api: ApiClient) -> None:
    """Rights for CoreDNS; everything else has its built-in role."""
    group = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    metadata = {"name": "localkube:coredns"}
    api.create(f"/apis/{group}/v1/clusterroles", {"metadata": metadata, "rules": rules})
    binding = {
        "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": metadata["name"]},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "system:coredns"}],
    }
    api.create(f"/apis/{group}/v1/clusterrolebindings", binding)


def is_ready(api: ApiClient, *, name: str) -> bool:
    """Whether the node says it is Ready."""
    try:
        conditions = api.request("GET", f"/api/v1/nodes/{name}").get("status", {}).get("conditions", [])
    except (OSError, ApiError, http.client.HTTPException):
        return False
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _kubelet(spec: ClusterSpec, *, paths: ClusterPaths) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(paths.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(paths.pki / "kubelet-serving.crt"),
        "tlsPrivateKeyFile": str(paths.pki / "kubelet-serving.key"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [spec.network.node],
        "resolvConf": str(paths.config / "resolv.conf"),
        "podLogsDir": str(paths.root / "pod-logs"),
        "volumePluginDir": str(paths.config / "volume-plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{spec.cgroup}",
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "failCgroupV1": False,
        "makeIPTablesUtilChains": False,
        # The disk belongs to the machine: nothing is evicted or collected because it fills.
        "evictionHard": dict.fromkeys(("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%"),
        "imageGCHighThresholdPercent": 100,
        "imageMinimumGCAge": "8760h",
        "imageMaximumGCAge": "0s",
        "serializeImagePulls": False,
        "maxPods": 250,
        "podPidsLimit": -1,
        # Pod starts wait for these on a small machine, not for the processor.
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "eventRecordQPS": 0,
        "syncFrequency": "10s",
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        # A dead kubelet is noticed after the controller manager's 12 s.
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 12,
        "volumeStatsAggPeriod": "-1s",  # walking gigabytes of model files every minute costs a core
    }


def _kube_proxy(spec: ClusterSpec, *, paths: ClusterPaths) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(paths.config / "kube-proxy.kubeconfig")},
        "clusterCIDR": spec.network.pods,
        "hostnameOverride": spec.node_name,
        "nodePortAddresses": ["primary"],
        "conntrack": {"maxPerCore": 0, "min": 0},
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }
