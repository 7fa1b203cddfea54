"""The namespaces a full cluster lives in.

The one job: make the fresh mount and network namespaces around this process usable, and link the network to the host.
The invariant kept: whatever is mounted or linked here vanishes with the last process of the namespaces; the host's own mount
table and addresses are never touched, except for one interface whose other end is in here.
Not done here: cgroup folders, which outlive processes (cgroups.py).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from . import cgroups
from .errors import LocalkubeError
from .paths import ClusterPaths
from .spec import ClusterSpec

# Per machine, not per namespace: each kubelet and containerd takes dozens. Raised where lower, never lowered.
_MACHINE_LIMITS = {"fs/inotify/max_user_instances": 512, "fs/inotify/max_user_watches": 524288}
# Programs insist on writing here; in the namespace they write to memory.
_MEMORY_FOLDERS = ("/run", "/var/lib", "/var/log")


def enter(spec: ClusterSpec, *, paths: ClusterPaths, host_network: int) -> None:
    """Prepare the namespaces this process was started in; `host_network` is a descriptor of the host's network namespace."""
    for file, wanted in _MACHINE_LIMITS.items():
        limit = Path("/proc/sys", file)
        if int(limit.read_text()) < wanted:
            limit.write_text(str(wanted))
    _mount(paths)
    cgroups.create(spec.cgroup)
    _link(spec, host_network=host_network)


def _mount(paths: ClusterPaths) -> None:
    run("mount", "--make-rshared", "/")  # pods with mount propagation, and the kubelet's own checks
    # The cache may lie below a folder that is about to be covered; a descriptor still reaches it.
    cache = os.open(paths.cache.root, os.O_PATH | os.O_DIRECTORY)
    for folder in _MEMORY_FOLDERS:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "localkube", folder)
    if not paths.cache.root.exists():
        paths.cache.root.mkdir(parents=True)
        # Not canonicalized: the link's text would name the covering folder, the link itself the covered one.
        run("mount", "--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{cache}", str(paths.cache.root))
    os.close(cache)
    paths.kubelet.mkdir(parents=True, exist_ok=True)
    os.makedirs("/var/lib/kubelet")
    run("mount", "--bind", str(paths.kubelet), "/var/lib/kubelet")


def _link(spec: ClusterSpec, *, host_network: int) -> None:
    network, host_namespace = spec.network, f"/proc/self/fd/{host_network}"
    run("ip", "link", "set", "lo", "up")
    peer = ("type", "veth", "peer", "name", spec.host_interface, "netns", host_namespace)
    run("ip", "link", "add", "eth0", *peer, pass_descriptor=host_network)
    run("ip", "address", "add", f"{network.node}/{network.link_prefix}", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    run("ip", "route", "add", "default", "via", network.host_end)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    on_host = ("nsenter", f"--net={host_namespace}")
    for command in (
        ("address", "add", f"{network.host_end}/{network.link_prefix}", "dev", spec.host_interface),
        ("link", "set", spec.host_interface, "up"),
        ("route", "add", network.subnet, "via", network.node),
    ):
        run(*on_host, "ip", *command, pass_descriptor=host_network)
    os.close(host_network)


def run(*command: str, pass_descriptor: int | None = None) -> None:
    """Run a short command; its failure is an error with its own words."""
    descriptors = () if pass_descriptor is None else (pass_descriptor,)
    done = subprocess.run(
        command, pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=30, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise LocalkubeError(f"{' '.join(command)} exited {done.returncode}: {done.stdout.strip()[-500:]}")
