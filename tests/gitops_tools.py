"""The tools that deliver engines, as far as they judge them: built from their own Go modules.

The one job: ask kstatus (Flux, kpt, Helm), an Argo CD health script or Flux's types about objects, and give the definitions of the
kinds that examples and the chart name. The invariant kept: what judges is theirs, pinned below `localkube/go`: kstatus, Flux's
types, the Lua interpreter of Argo CD. What hands that one a script and an object is ours: Argo CD's own is 1,400 packages.
Not done here: their controllers; nothing is reconciled.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localkube.binaries import GoModule, ModuleFile, ensure_module
from localkube.paths import CachePaths, cache_root

_JUDGE = GoModule("gitops", {"gitops-judge": "."})
_BASES = "config/crd/bases"
_FLUX, _KEDA = "github.com/fluxcd", "github.com/kedacore/keda/v2"
_PROMETHEUS, _PROMETHEUS_CRDS = "github.com/prometheus-operator/prometheus-operator", "example/prometheus-operator-crd"
_CRDS = GoModule(
    "crds",
    {},
    files={
        "argocd-applications.yaml": ModuleFile("github.com/argoproj/argo-cd/v3", "manifests/crds/application-crd.yaml"),
        "flux-gitrepositories.yaml": ModuleFile(
            f"{_FLUX}/source-controller", f"{_BASES}/source.toolkit.fluxcd.io_gitrepositories.yaml"
        ),
        "flux-kustomizations.yaml": ModuleFile(
            f"{_FLUX}/kustomize-controller", f"{_BASES}/kustomize.toolkit.fluxcd.io_kustomizations.yaml"
        ),
        "inferencepools.yaml": ModuleFile(
            "sigs.k8s.io/gateway-api-inference-extension", f"{_BASES}/inference.networking.k8s.io_inferencepools.yaml"
        ),
        "keda-scaledobjects.yaml": ModuleFile(_KEDA, f"{_BASES}/keda.sh_scaledobjects.yaml"),
        "podmonitors.yaml": ModuleFile(_PROMETHEUS, f"{_PROMETHEUS_CRDS}/monitoring.coreos.com_podmonitors.yaml"),
        "prometheusrules.yaml": ModuleFile(_PROMETHEUS, f"{_PROMETHEUS_CRDS}/monitoring.coreos.com_prometheusrules.yaml"),
    },
)


@dataclass(frozen=True)
class Verdict:
    """What a tool says of one object."""

    status: str
    message: str


def kstatus(objects: Iterable[dict[str, Any]]) -> list[Verdict]:
    """`InProgress`, `Current`, `Failed` or `Terminating`."""
    return _judge("kstatus", objects=objects)


def argocd_health(objects: Iterable[dict[str, Any]], *, script: Path) -> list[Verdict]:
    """`Healthy`, `Progressing`, `Degraded` or `Suspended`."""
    return _judge("argocd-health", str(script), objects=objects)


def helm_releases(objects: Iterable[dict[str, Any]]) -> list[Verdict]:
    """`Accepted`, or `Refused` with the field that Flux's type does not have."""
    return _judge("helmrelease", objects=objects)


def foreign_crds() -> Path:
    """The folder of the definitions of other projects' kinds."""
    return ensure_module(_CRDS, cache=CachePaths(cache_root()))


def _judge(*arguments: str, objects: Iterable[dict[str, Any]]) -> list[Verdict]:
    program = ensure_module(_JUDGE, cache=CachePaths(cache_root())) / "gitops-judge"
    lines = "\n".join(json.dumps(found) for found in objects)
    done = subprocess.run([str(program), *arguments], input=lines, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"gitops-judge {arguments[0]} exited {done.returncode}: {done.stderr.strip()}")
    return [Verdict(**json.loads(line)) for line in done.stdout.splitlines()]
