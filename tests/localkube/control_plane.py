"""etcd, kube-apiserver, controller-manager, scheduler.

The one job: their certificates, configuration files and command lines.
The invariant kept: they listen on the cluster's own address alone, so that any number of clusters use the same ports.
Not done here: starting them (supervisor.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from .network import PORT
from .paths import ClusterPaths
from .pki import Authority, Identity
from .spec import ClusterSpec

_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # One event per finished request: whoever counts writes counts lines.
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*"]}, {"level": "Metadata"}],
}

IDENTITIES = {
    "admin": Identity("localkube-admin", ("system:masters",)),
    "kube-controller-manager": Identity("system:kube-controller-manager"),
    "kube-scheduler": Identity("system:kube-scheduler"),
    "kube-proxy": Identity("system:kube-proxy"),
    "coredns": Identity("system:coredns"),
    "kwok": Identity("kwok", ("system:masters",)),
    "apiserver-kubelet": Identity("kube-apiserver-kubelet-client", ("system:masters",)),
}


@dataclass(frozen=True)
class Component:
    """One long-running program of a cluster."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def write_files(spec: ClusterSpec, *, paths: ClusterPaths) -> None:
    """Certificates, kubeconfigs and policies, everything the control plane reads."""
    for folder in (paths.pki, paths.config, paths.logs):
        folder.mkdir(parents=True, exist_ok=True)
    authority = Authority(paths.pki)
    names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    network = spec.network
    authority.serving("apiserver", dns=names, addresses=("127.0.0.1", network.node, network.kubernetes_service))
    authority.signing_key("service-accounts")
    node = {"kubelet": Identity(f"system:node:{spec.node_name}", ("system:nodes",))}
    for name, identity in {**IDENTITIES, **node}.items():
        authority.client(name, identity=identity)
        target = paths.kubeconfig if name == "admin" else paths.config / f"{name}.kubeconfig"
        target.touch(mode=0o600)
        target.write_text(json.dumps(_kubeconfig(spec, paths=paths, user=name), indent=1))
    authority.serving("kubelet-serving", dns=(spec.node_name,), addresses=(network.node,))
    (paths.config / "audit-policy.json").write_text(json.dumps(_AUDIT_POLICY))


def etcd(spec: ClusterSpec, *, paths: ClusterPaths) -> Component:
    """The store. Without fsync: a cluster's data never outlives its processes."""
    client, peer = f"http://{spec.network.node}:2379", f"http://{spec.network.node}:2380"
    return Component("etcd", (
        f"{spec.binaries}/etcd", f"--data-dir={paths.root / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        "--quota-backend-bytes=4294967296", "--auto-compaction-retention=5m",
    ))  # fmt: skip


def apiserver(spec: ClusterSpec, *, paths: ClusterPaths) -> Component:
    """The apiserver, with an audit log of every request."""
    network, pki = spec.network, paths.pki
    # A loopback address cannot stand in an Endpoints object; a control plane alone has nobody who would follow it.
    endpoints = ("master-count", network.node) if spec.full else ("none", network.host_end)
    return Component("kube-apiserver", (
        f"{spec.binaries}/kube-apiserver", f"--etcd-servers=http://{network.node}:2379",
        f"--bind-address={'0.0.0.0' if spec.full else network.node}", f"--secure-port={PORT}",
        f"--endpoint-reconciler-type={endpoints[0]}", f"--advertise-address={endpoints[1]}",
        f"--service-cluster-ip-range={network.services}", "--authorization-mode=Node,RBAC",
        # The second one asks for rights that only some clusters ask for (OpenShift does): what passes here passes there.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        "--allow-privileged", "--kubelet-preferred-address-types=InternalIP",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}", f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}", f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        f"--audit-policy-file={paths.config / 'audit-policy.json'}", f"--audit-log-path={paths.audit_log}",
        # Blocking: the line is there before the client has its answer, so a test may count right after a call.
        "--audit-log-mode=blocking", "--audit-log-maxsize=2000", "--audit-log-maxbackup=1",
        "--profiling=false",
    ))  # fmt: skip


def controller_manager(spec: ClusterSpec, *, paths: ClusterPaths) -> Component:
    """Garbage collection, endpoints, node lifecycle, autoscaling. A silent node is unhealthy after 12 s."""
    return Component("kube-controller-manager", (
        f"{spec.binaries}/kube-controller-manager", f"--kubeconfig={paths.config / 'kube-controller-manager.kubeconfig'}",
        "--leader-elect=false", "--use-service-account-credentials", "--secure-port=0",
        f"--service-account-private-key-file={paths.pki / 'service-accounts.key'}", f"--root-ca-file={paths.pki / 'ca.crt'}",
        "--node-monitor-grace-period=12s", "--node-monitor-period=2s",
        "--horizontal-pod-autoscaler-sync-period=1s", "--profiling=false", *_client_limits(spec),
    ))  # fmt: skip


def scheduler(spec: ClusterSpec, *, paths: ClusterPaths) -> Component:
    """The scheduler."""
    return Component("kube-scheduler", (
        f"{spec.binaries}/kube-scheduler", f"--kubeconfig={paths.config / 'kube-scheduler.kubeconfig'}",
        "--leader-elect=false", "--secure-port=0", "--profiling=false", *_client_limits(spec),
    ))  # fmt: skip


def _client_limits(spec: ClusterSpec) -> tuple[str, ...]:
    """What a test waits for shall not wait for a limit on requests."""
    return () if spec.stock_limits else ("--kube-api-qps=200", "--kube-api-burst=400")


def _kubeconfig(spec: ClusterSpec, *, paths: ClusterPaths, user: str) -> dict[str, object]:
    def pem(file: Path) -> str:
        return str(file)

    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": spec.name,
        "clusters": [
            {
                "name": spec.name,
                "cluster": {
                    "server": f"https://{spec.network.node}:{PORT}",
                    "certificate-authority": pem(paths.pki / "ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate": pem(paths.pki / f"{user}.crt"),
                    "client-key": pem(paths.pki / f"{user}.key"),
                },
            }
        ],
        "contexts": [{"name": spec.name, "context": {"cluster": spec.name, "user": user}}],
    }
