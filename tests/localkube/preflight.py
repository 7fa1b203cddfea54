"""What the machine must have.

The one job: find out before the first step whether the rest can work, and say in one line what to do when it cannot.
The invariant kept: nothing is installed or changed here; `DEBIAN_PACKAGES` is the only list of needed packages.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from .errors import MachineError

# What each command is needed for, by the Debian package that brings it.
_CLUSTER_COMMANDS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "iptables": "iptables",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
_IMAGE_COMMANDS = {"buildah": "buildah", "debootstrap": "debootstrap", "gcc": "gcc", **_CLUSTER_COMMANDS}
_CNI_FOLDER = Path("/usr/lib/cni")

_OTHER_PACKAGES = {"libc6-dev", "containernetworking-plugins", "ca-certificates", "python3-pip", "python3-venv"}
DEBIAN_PACKAGES = tuple(sorted({*_IMAGE_COMMANDS.values(), *_OTHER_PACKAGES}))
GIB = 1024**3


def check_linux() -> None:
    """Refuse anything but 64-bit Linux."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise MachineError(
            f"localkube needs 64-bit Linux, this is {platform.system()} {platform.machine()}: set KUBECONFIG to a cluster of yours"
        )


def check_full_cluster() -> None:
    """Refuse what cannot run a kubelet."""
    check_linux()
    _check_root(what="a cluster with a kubelet", otherwise="run as root, or start --control-plane-only")
    _check_commands(_CLUSTER_COMMANDS, cni=True)


def check_images() -> None:
    """Refuse what cannot build and import images."""
    check_linux()
    _check_root(what="building images", otherwise="run as root")
    _check_commands(_IMAGE_COMMANDS, cni=False)


def check_disk(folder: Path, *, need_bytes: int, what: str) -> None:
    """Refuse when the file system of `folder` has less than `need_bytes` left."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise MachineError(
            f"{what} needs {need_bytes / GIB:.1f} GiB below {folder}, {free / GIB:.1f} GiB are free: "
            "free some, or set ENGINEHOUSE_CACHE to a larger disk"
        )


def _check_root(*, what: str, otherwise: str) -> None:
    if os.geteuid() != 0:
        raise MachineError(f"{what} needs root, this is user {os.geteuid()}: {otherwise}")


def _check_commands(commands: dict[str, str], *, cni: bool) -> None:
    missing = {package for command, package in commands.items() if shutil.which(command) is None}
    if cni and not (_CNI_FOLDER / "bridge").exists():
        missing.add("containernetworking-plugins")
    if missing:
        raise MachineError(f"missing commands: apt-get install --no-install-recommends {' '.join(sorted(missing))}")
