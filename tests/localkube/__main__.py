"""The command line.

The one job: turn arguments into calls and errors into one line and an exit status (1: it failed, 2: the machine lacks something).
The invariant kept: standard output holds only what other programs read; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from . import cluster, images, preflight
from .binaries import ensure_binaries
from .errors import LocalkubeError
from .paths import CachePaths, cache_root, cluster_paths
from .spec import read_spec
from .steps import report


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except LocalkubeError as error:
        print(f"localkube: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("localkube: interrupted; a cluster that was starting goes on: python -m localkube stop --all", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m localkube", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    start = commands.add_parser("start", help="start a cluster unless it runs")
    start.add_argument("name")
    start.add_argument("--control-plane-only", action="store_true", help="etcd and kube-apiserver; no root needed")
    start.add_argument("--controller-manager", action="store_true", help="with a control plane alone: garbage collection too")
    start.add_argument("--kwok", type=int, nargs="?", const=3, default=0, metavar="NODES", help="add fake nodes (3)")
    start.add_argument("--gpus", type=int, default=8, help="nvidia.com/gpu of each fake node (8)")
    start.set_defaults(run=_start)
    status = commands.add_parser("status", help="what runs")
    status.add_argument("name", nargs="?")
    status.set_defaults(run=_status)
    stop = commands.add_parser("stop", help="stop a cluster and remove every trace of it")
    stop.add_argument("name", nargs="?")
    stop.add_argument("--all", action="store_true")
    stop.set_defaults(run=_stop)
    kubeconfig = commands.add_parser("kubeconfig", help="print the path of a cluster's kubeconfig")
    kubeconfig.add_argument("name")
    kubeconfig.set_defaults(run=lambda options: print(_running(options.name).kubeconfig))
    kubectl = commands.add_parser("kubectl", help="run kubectl against a cluster: kubectl NAME -- get pods")
    kubectl.add_argument("name")
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    kubectl.set_defaults(run=_kubectl)
    build = commands.add_parser("build", help="build the programs, so that the first start is fast")
    build.set_defaults(run=lambda _: print(ensure_binaries(CachePaths(cache_root()))))
    binaries = commands.add_parser("bin", help="print the folder of kubectl, helm and the others, building them if needed")
    binaries.set_defaults(run=lambda _: print(ensure_binaries(CachePaths(cache_root()))))
    image = commands.add_parser("images", help="build the operator and engine images and hand them to every cluster")
    image.add_argument("targets", nargs="*", choices=[[], *images.TARGETS], help="operator, engine (both)")
    image.set_defaults(run=_images)
    packages = commands.add_parser("packages", help="print the Debian packages that are needed")
    packages.set_defaults(run=lambda _: print(*preflight.DEBIAN_PACKAGES))
    return parser


def _start(options: argparse.Namespace) -> None:
    began = time.monotonic()
    started = cluster.start(
        options.name, control_plane_only=options.control_plane_only, controller_manager=options.controller_manager,
        fake_nodes=options.kwok, fake_gpus=options.gpus,
    )  # fmt: skip
    report(f"{options.name} is ready", seconds=time.monotonic() - began)
    print(f"export KUBECONFIG={started.kubeconfig}")


def _status(options: argparse.Namespace) -> int:
    found = [options.name] if options.name else cluster.names()
    for name in found:
        running = cluster.find(name)
        spec = read_spec(cluster_paths(name))
        if running is None or spec is None:
            print(f"{name}: not running")
            continue
        kind = "full" if spec.full else "control plane"
        extra = f", {spec.fake_nodes} KWOK nodes" if spec.fake_nodes else ""
        print(f"{name}: {kind}{extra}, {len(running.processes())} processes, KUBECONFIG={running.kubeconfig}")
    return 0 if all(cluster.find(name) for name in found) else 1


def _stop(options: argparse.Namespace) -> None:
    if bool(options.name) == options.all:
        raise LocalkubeError("stop: wanted a name or --all")
    for name in cluster.names() if options.all else [options.name]:
        cluster.stop(name)


def _kubectl(options: argparse.Namespace) -> None:
    running = _running(options.name)
    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    os.execve(running.binaries / "kubectl", ["kubectl", *arguments], running.environment)


def _images(options: argparse.Namespace) -> None:
    for reference in images.build_and_import(CachePaths(cache_root()), targets=tuple(options.targets) or images.TARGETS):
        print(reference)


def _running(name: str) -> cluster.Cluster:
    running = cluster.find(name)
    if running is None:
        raise LocalkubeError(f"cluster {name} does not run: python -m localkube start {name}")
    return running


if __name__ == "__main__":
    sys.exit(main())
