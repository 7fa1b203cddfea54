"""Enginehouse installed on a cluster, for the demo, the cluster tests and the benchmarks.

The one job: have both images on a cluster and the chart installed, of this tree or an earlier one, and offer the few commands that
all three need.
The invariant kept: installing twice is harmless; a cluster that KUBECONFIG names pulls its images from a registry the caller names.
Not done here: applying engines, deciding what is right.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import images
from .cluster import Cluster
from .errors import LocalkubeError
from .paths import CachePaths, cache_root
from .steps import step

ROOT = images.REPOSITORY
_CHART = Path("charts", "enginehouse")
CHART = ROOT / _CHART
SYSTEM_NAMESPACE = "enginehouse-system"
_HELM_SECONDS = 180.0

# Run inside a pod. A search for its own words would find itself.
_KILL_AN_ENGINE_CORE = """
import os, signal, sys
for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
    words = open(f'/proc/{pid}/cmdline').read().split('\\0')
    is_core = pid != os.getpid() and 'enginehouse_engine.core.process' in words
    if is_core and sys.argv[1] in ('', words[words.index('--rank') + 1]):
        os.kill(pid, signal.SIGKILL)
        print('kill -9', pid)
"""


@dataclass(frozen=True)
class Installation:
    """A cluster with the operator in it."""

    cluster: Cluster
    operator_image: str
    engine_image: str

    def kubectl(self, *arguments: str, namespace: str, stdin: str | None = None, timeout_seconds: float = 60.0) -> str:
        """Run kubectl in a namespace; its failure is a LocalkubeError with its words."""
        return self.cluster.kubectl("--namespace", namespace, *arguments, stdin=stdin, timeout_seconds=timeout_seconds)

    def kill_engine_cores(self, pod: str, *, namespace: str, rank: int | None = None) -> str:
        """kill -9 to every engine core of a pod, or to that of one rank; says which."""
        command = ("python3", "-c", _KILL_AN_ENGINE_CORE, "" if rank is None else str(rank))
        return self.kubectl("exec", pod, "-c", "engine", "--", *command, namespace=namespace).strip()

    @contextmanager
    def reached(self, service: str, *, namespace: str) -> Iterator[str]:
        """The base URL of a service: its cluster address where that is routed to us, else a forwarded local port."""
        if self.cluster.owned:
            fields = "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"
            yield f"http://{self.kubectl('get', 'service', service, '-o', fields, namespace=namespace)}"
            return
        command = [str(self.cluster.binaries / "kubectl"), "--namespace", namespace, "port-forward", f"service/{service}", ":80"]
        with subprocess.Popen(
            command, env=self.cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as forward:
            try:
                line = forward.stdout.readline() if forward.stdout else ""
                port = re.search(r"127\.0\.0\.1:(\d+) ->", line)
                if port is None:
                    raise LocalkubeError(f"kubectl port-forward service/{service} said {line.strip()!r}: look at its endpoints")
                yield f"http://127.0.0.1:{port.group(1)}"
            finally:
                forward.terminate()


def install(cluster: Cluster, *, registry: str | None = None, set_values: tuple[str, ...] = (), tree: Path = ROOT) -> Installation:
    """Build both images unless `registry` already holds them, and install the chart, or upgrade to it. Raises LocalkubeError."""
    if cluster.owned:
        operator_image, engine_image = images.build_and_import(CachePaths(cache_root()), targets=images.TARGETS, tree=tree)
    elif registry:
        operator_image, engine_image = (f"{registry}/enginehouse-{target}:0.1.0" for target in images.TARGETS)
    else:
        raise LocalkubeError(
            "KUBECONFIG names a cluster of yours: push both images to a registry it can pull from (docker build --target operator,"
            " --target engine) as PREFIX/enginehouse-operator:0.1.0 and PREFIX/enginehouse-engine:0.1.0, then say PREFIX"
        )
    repository, _, tag = operator_image.rpartition(":")
    of_images = (f"image.repository={repository}", f"image.tag={tag}", f"engineImage={engine_image}")
    with step("helm install enginehouse"):
        command = ["upgrade", "--install", "enginehouse", str(tree / _CHART), "--namespace", SYSTEM_NAMESPACE, "--create-namespace"]
        command += ["--wait", "--timeout", f"{_HELM_SECONDS:.0f}s"]
        command += [argument for value in of_images for argument in ("--set-string", value)]
        command += [argument for value in set_values for argument in ("--set", value)]
        cluster.helm(*command, timeout_seconds=_HELM_SECONDS + 30)
    return Installation(cluster, operator_image, engine_image)
