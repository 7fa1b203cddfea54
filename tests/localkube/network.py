"""Addresses of a cluster.

The one job: derive every address of a cluster from its slot, and hand out slots.
The invariant kept: two clusters on one machine never share an address, and a full cluster never covers a subnet the host routes.
A slot is an abstract socket held by the cluster's own processes: the whole machine sees it, whatever user and cache a cluster
has, it is no file, and it is free again the moment they are gone.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
from dataclasses import dataclass

from .errors import LocalkubeError, MachineError

PORT = 6443  # of every apiserver, each on an address of its own
SLOTS = 16
_FIRST_SUBNET = 208  # 10.208.0.0/16 to 10.223.0.0/16: away from the defaults of Docker, kind, minikube and k3s


@dataclass(frozen=True)
class Network:
    """Where a cluster's parts are reached. A control plane alone lives on loopback, a full cluster on its own subnet."""

    slot: int
    full: bool

    @property
    def subnet(self) -> str:
        """Everything of the cluster; the host has one route for it."""
        return f"10.{_FIRST_SUBNET + self.slot}.0.0/16"

    @property
    def pods(self) -> str:
        """Pod addresses; the bridge has the first."""
        return f"10.{_FIRST_SUBNET + self.slot}.0.0/17"

    @property
    def services(self) -> str:
        """ClusterIPs."""
        return f"10.{_FIRST_SUBNET + self.slot}.128.0/18"

    @property
    def kubernetes_service(self) -> str:
        """The ClusterIP of the apiserver."""
        return f"10.{_FIRST_SUBNET + self.slot}.128.1"

    @property
    def host_end(self) -> str:
        """The host's address on the link into the cluster."""
        return f"10.{_FIRST_SUBNET + self.slot}.255.1"

    @property
    def node(self) -> str:
        """Where apiserver, kubelet and DNS listen."""
        return f"10.{_FIRST_SUBNET + self.slot}.255.2" if self.full else f"127.77.{self.slot}.1"

    @property
    def link_prefix(self) -> int:
        """Prefix length of the link between host and cluster."""
        return 30


def take_slot(*, full: bool) -> tuple[Network, socket.socket]:
    """The first free slot, and the socket whose descriptor the cluster's processes must inherit."""
    routes = _host_routes() if full else []
    for slot in range(SLOTS):
        network = Network(slot, full)
        if any(ipaddress.ip_network(network.subnet).overlaps(route) for route in routes):
            continue
        if not full and not _is_bindable(network.node):
            continue
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            holder.bind(f"\0enginehouse-localkube-slot-{slot}")
        except OSError:
            holder.close()
            continue
        return network, holder
    raise LocalkubeError(f"all {SLOTS} slots for clusters are taken: stop one (python -m localkube status)")


def _is_bindable(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, PORT))
        except OSError:
            return False
    return True


def _host_routes() -> list[ipaddress.IPv4Network]:
    done = subprocess.run(["ip", "-json", "-4", "route"], capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        raise MachineError(f"ip route exited {done.returncode}: {done.stderr.strip()}")
    texts = [route["dst"] for route in json.loads(done.stdout or "[]") if route["dst"] != "default"]
    return [network for text in texts if (network := ipaddress.IPv4Network(text)).prefixlen > 8]
