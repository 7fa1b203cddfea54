"""The two images of this repository.

The one job: build them from the Dockerfile when what goes into them has changed, and hand them to the store and to every
running full cluster.
The invariant kept: a tag is a hash of everything that goes into the image, so an unchanged tree is no work, a changed file
of code rebuilds one small layer, and a name never means two things.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import image_store, model, preflight
from .build_storage import BuildStorage
from .locks import locked
from .paths import CachePaths, ClusterPaths
from .processes import processes_of
from .spec import read_spec
from .steps import report, step

REPOSITORY = Path(__file__).parents[2]
_LOCK_SECONDS = 3600.0
_KEPT_TREES = 8  # images of earlier trees: a layer of code each, unless the locks changed
_CROWDED_BYTES = 15 * preflight.GIB
_CERTIFICATES = "/etc/ssl/certs"

_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_BASE_SUITE = "bookworm"
_BASE_SCRIPT = """
container=$($BUILDAH from scratch)
root=$($BUILDAH mount $container)
debootstrap --variant=minbase --include={packages} {suite} $root >&2
rm -rf $root/var/cache/apt/* $root/var/lib/apt/lists/* $root/var/log/* $root/usr/share/doc/* $root/usr/share/man/*
$BUILDAH umount $container >&2
$BUILDAH commit --quiet --rm $container {name}
"""
_BUILD_SCRIPT = """
$BUILDAH bud --isolation chroot --layers --build-arg BASE={base} {arguments} \\
  --volume {certificates}:{certificates}:ro --target {target} --tag {name} {context} >&2
"""


@dataclass(frozen=True)
class Target:
    """One target of the Dockerfile, what goes into it, and the disk its first build takes at its peak."""

    name: str
    lock: str
    code: str
    need_bytes: int


_TARGETS = {
    "operator": Target("operator", "locks/operator.txt", "operator/enginehouse_operator", 3 * preflight.GIB),
    # Build storage and exported layers of 6 GB each, and pip's downloads while it installs.
    "engine": Target("engine", "locks/engine.txt", "engine_image/enginehouse_engine", 18 * preflight.GIB),
}
TARGETS = tuple(_TARGETS)


def reference(target: str, *, tree: Path = REPOSITORY) -> str:
    """The name of the image that a tree makes: use it in manifests with imagePullPolicy IfNotPresent."""
    chosen = _TARGETS[target]
    digest = hashlib.sha256(_base_name().encode())
    inputs = [tree / "Dockerfile", tree / chosen.lock, *_files(tree / chosen.code)]
    for path in inputs:
        digest.update(str(path.relative_to(tree)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"localhost/enginehouse-{target}:{digest.hexdigest()[:12]}"


def build_and_import(cache: CachePaths, *, targets: tuple[str, ...] = TARGETS, tree: Path = REPOSITORY) -> list[str]:
    """Have the images of a tree, the present one by default, in the store and in running clusters; returns their names."""
    preflight.check_images()
    model.ensure(cache)
    wanted = {target: reference(target, tree=tree) for target in targets}
    if set(wanted.values()) <= set(image_store.references(cache)) and not any(_running_nodes(cache)):
        return list(wanted.values())
    with locked(cache.locks / "images.lock", timeout_seconds=_LOCK_SECONDS, wanted="building images"):
        storage = BuildStorage(cache)
        for target, name in wanted.items():
            if name not in image_store.references(cache):
                _build(storage, target=_TARGETS[target], name=name, tree=tree)
                with step(f"stored {name}"):
                    image_store.add(cache, layout=storage.layout, name=name, sources=storage.unpacked(name))
            for paths, pid in _running_nodes(cache):
                if image_store.add_to_running(cache, root=paths.containerd, pid=pid, layout=storage.layout, name=name):
                    report(f"{paths.name} has {name}")
        _prune(storage, keep=set(wanted.values()))
    return list(wanted.values())


def _build(storage: BuildStorage, *, target: Target, name: str, tree: Path) -> None:
    storage.forget_mounts()
    base = _base_name()
    # Dependencies are what takes disk and minutes: noted, once built, by what they are made of.
    ingredients = hashlib.sha256(base.encode() + (tree / target.lock).read_bytes()).hexdigest()[:12]
    built = storage.cache.images / f"{target.name}-dependencies-{ingredients}"
    first = not built.exists()
    if first:
        preflight.check_disk(storage.cache.images, need_bytes=target.need_bytes, what=f"building the {target.name} image")
    if base not in storage.names():
        with step("made the base image", announce=True):
            storage.script(_BASE_SCRIPT.format(packages=_BASE_PACKAGES, suite=_BASE_SUITE, name=base), what="debootstrap")
    # Handed to pip while it installs and written nowhere: where to find certificates and packages is this machine's business.
    passed = [f"--build-arg {key}" for key in ("PIP_CERT", "PIP_INDEX_URL") if os.environ.get(key)]
    certificate = {} if "PIP_CERT" in os.environ else {"PIP_CERT": f"{_CERTIFICATES}/ca-certificates.crt"}
    if certificate:
        passed.append("--build-arg PIP_CERT")
    script = _BUILD_SCRIPT.format(
        base=base, arguments=" ".join(passed), certificates=_CERTIFICATES, target=target.name, name=name, context=tree
    )
    with step(f"built the {target.name} image", announce=first):
        storage.script(script, what=f"building the {target.name} image", environment=certificate)
    with step(f"exported {name}"):
        storage.export(name)
    for note in storage.cache.images.glob(f"{target.name}-dependencies-*"):
        note.unlink()
    built.touch()


def _prune(storage: BuildStorage, *, keep: set[str]) -> None:
    """Drop images of earlier trees, unless a running cluster may use them."""
    cache = storage.cache
    stored = image_store.references(cache)
    for target in TARGETS:
        ours = [name for name in stored if name.startswith(f"localhost/enginehouse-{target}:")]
        if not keep & set(ours):
            keep.update(ours[-1:])
    old = [name for name in stored if name.startswith("localhost/enginehouse-") and name not in keep]
    crowded = len(old) > _KEPT_TREES or shutil.disk_usage(cache.home).free < _CROWDED_BYTES
    if not old or not crowded or any(_running_nodes(cache)):
        return
    with step(f"dropped {len(old)} images of earlier trees"):
        storage.prune(keep | {_base_name()}, exported=keep)
        image_store.clear(cache)
        image_store.ensure_pause(cache)
        for name in sorted(keep):
            image_store.add(cache, layout=storage.layout, name=name, sources=storage.unpacked(name))


def _base_name() -> str:
    recipe = hashlib.sha256(f"{_BASE_PACKAGES} {_BASE_SUITE} {_BASE_SCRIPT}".encode()).hexdigest()[:8]
    return f"localhost/enginehouse-base:{recipe}"


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _running_nodes(cache: CachePaths) -> Iterator[tuple[ClusterPaths, int]]:
    """Every running full cluster, with a process in its mount namespace."""
    for folder in sorted(cache.clusters.iterdir()) if cache.clusters.is_dir() else []:
        paths = ClusterPaths(folder.name, cache)
        spec = read_spec(paths)
        if spec is not None and spec.full:
            yield from ((paths, pid) for pid, name in processes_of(spec.marker).items() if name == "containerd")
