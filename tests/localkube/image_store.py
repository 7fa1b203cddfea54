"""Images, where containerd finds them.

The one job: one containerd root in the cache (the store) that images are added to, and a clone of it per cluster.
The invariant kept: no two containerds share a root. A clone copies the two small databases, hard-links the content and
points at the store's unpacked layers, all of which never change; so it takes a tenth of a second and no disk, and any
number of clusters run on one copy of the 6 GB. Layers leave the store only while no full cluster runs.
Not done here: building images (images.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from .adoption import CONTENT, SNAPSHOTS, Job, chain_identities
from .errors import LocalkubeError
from .locks import locked
from .node import PAUSE_IMAGE
from .oci import Layout
from .paths import CachePaths
from .steps import step

_DATABASES = (Path("io.containerd.metadata.v1.bolt", "meta.db"), SNAPSHOTS.parent / "metadata.db")
_SECONDS = 900
_LOCK_SECONDS = 1200.0
_PAUSE_SOURCE = Path(__file__).parent / "pause" / "pause.c"


def ensure_pause(cache: CachePaths) -> None:
    """Have the image that holds a pod's namespaces in the store."""
    with _locked(cache):
        if PAUSE_IMAGE in references(cache):
            return
        with step("built the pause image"), tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "pause")
            _run(["gcc", "-static", "-Os", "-s", "-o", str(program), str(_PAUSE_SOURCE)], what="building the pause image")
            layout = Layout(Path(folder, "oci"))
            layout.write_image("pause", files={"pause": program.read_bytes()}, entrypoint=("/pause",))
            _add(cache, layout=layout, name="pause", reference=PAUSE_IMAGE, sources=())


def add(cache: CachePaths, *, layout: Layout, name: str, sources: tuple[Path, ...]) -> None:
    """Add one image of a layout to the store, its layers unpacked in `sources` from the lowest up."""
    with _locked(cache):
        if name not in references(cache):
            _add(cache, layout=layout, name=name, reference=name, sources=sources)


def add_to_running(cache: CachePaths, *, root: Path, pid: int, layout: Layout, name: str) -> bool:
    """Add an image of the store to a running cluster: its containerd's root, a process in its mount namespace."""
    inside = ["nsenter", f"--target={pid}", "--mount"]
    listed = _run([*inside, "ctr", "--namespace=k8s.io", "images", "list", "--quiet"], what="listing a cluster's images")
    if name in listed.split():
        return False
    with _locked(cache), tempfile.NamedTemporaryFile(dir=cache.home) as file:
        _lay_blobs(layout, name=name, root=root)
        folders = _folders(cache)
        sources = tuple(folders[chain] for chain in chain_identities(layout.difference_digests(name)))
        Job(str(root), str(layout.root), name, name, sources, point=True).write(Path(file.name))
        _run([*inside, sys.executable, "-m", "localkube.adoption", file.name], what=f"handing {name} to a running cluster")
    return True


def references(cache: CachePaths) -> list[str]:
    """What the store holds. Kept beside it: asking containerd would mean starting it."""
    try:
        return (cache.store / "references").read_text().split()
    except FileNotFoundError:
        return []


def clone(cache: CachePaths, *, target: Path) -> None:
    """Make a containerd root with all images of the store."""
    with _locked(cache):
        for database in _DATABASES:
            (target / database).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cache.store / database, target / database)
        (target / CONTENT).mkdir(parents=True)
        for blob in (cache.store / CONTENT).iterdir():
            os.link(blob, target / CONTENT / blob.name)
        (target / SNAPSHOTS).mkdir(parents=True)
        for snapshot in (cache.store / SNAPSHOTS).iterdir():
            (target / SNAPSHOTS / snapshot.name).symlink_to(snapshot)


def clear(cache: CachePaths) -> None:
    """Drop the store. Only while no full cluster runs."""
    with _locked(cache):
        shutil.rmtree(cache.store, ignore_errors=True)


def _locked(cache: CachePaths) -> AbstractContextManager[None]:
    return locked(cache.locks / "store.lock", timeout_seconds=_LOCK_SECONDS, wanted="the image store")


def _add(cache: CachePaths, *, layout: Layout, name: str, reference: str, sources: tuple[Path, ...]) -> None:
    """Run a containerd on the store for as long as it takes, in namespaces that take everything along."""
    if sources:
        _lay_blobs(layout, name=name, root=cache.store)
    cache.store.mkdir(parents=True, exist_ok=True)
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"]
    with tempfile.NamedTemporaryFile(dir=cache.home) as file:
        Job(str(cache.store), str(layout.root), name, reference, tuple(map(str, sources))).write(Path(file.name))
        said = _run([*unshare, sys.executable, "-m", "localkube.store_session", file.name], what=f"adding {reference}")
    (cache.store / "snapshots.json").write_text(json.dumps({**_folders(cache), **json.loads(said)}))
    with (cache.store / "references").open("a") as references_file:
        references_file.write(reference + "\n")


def _folders(cache: CachePaths) -> dict[str, str]:
    """The store's unpacked layers by chain identity."""
    try:
        folders: dict[str, str] = json.loads((cache.store / "snapshots.json").read_text())
    except FileNotFoundError:
        return {}
    return folders


def _lay_blobs(layout: Layout, *, name: str, root: Path) -> None:
    (root / CONTENT).mkdir(parents=True, exist_ok=True)
    for digest in layout.digests(name):
        if not (root / CONTENT / digest).exists():
            os.link(layout.blobs / digest, root / CONTENT / digest)


def _run(command: list[str], *, what: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode != 0:
        raise LocalkubeError(f"{what}: {command[0]} exited {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout
