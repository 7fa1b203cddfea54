"""Images, where containerd finds them.

The one job: one containerd root in the cache (the store) that images are imported into, and a clone of it per cluster.
The invariant kept: no two containerds share a root. A clone copies the two small databases, hard-links the content and
points at the store's unpacked layers, all of which never change; so it takes a tenth of a second and no disk, and any
number of clusters run on one copy of the 6 GB. Layers leave the store only while no full cluster runs.
Not done here: building images (images.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from .errors import LocalkubeError
from .locks import locked
from .node import PAUSE_IMAGE
from .oci import Layout
from .paths import CachePaths
from .processes import log_tail
from .steps import step

CONTAINERD_NAMESPACE = "k8s.io"
_CONTENT = Path("io.containerd.content.v1.content", "blobs", "sha256")
_METADATA = Path("io.containerd.metadata.v1.bolt", "meta.db")
_SNAPSHOTTER = Path("io.containerd.snapshotter.v1.overlayfs")
_IMPORT_SECONDS = 900
_LOCK_SECONDS = 1200.0
_PAUSE_SOURCE = Path(__file__).parent / "pause" / "pause.c"


def ensure_pause(cache: CachePaths) -> None:
    """Have the image that holds a pod's namespaces in the store."""
    with _locked(cache):
        if PAUSE_IMAGE in references(cache):
            return
        with step("built the pause image"), tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "pause")
            command = ["gcc", "-static", "-Os", "-s", "-o", str(program), str(_PAUSE_SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode != 0:
                raise LocalkubeError(f"gcc exited {done.returncode}: {done.stderr.strip()[-500:]}")
            layout = Layout(Path(folder, "oci"))
            layout.write_image("pause", files={"pause": program.read_bytes()}, entrypoint=("/pause",))
            _import(cache, layout=layout, name="pause", reference=PAUSE_IMAGE)


def add(cache: CachePaths, *, layout: Layout, name: str, reference: str) -> None:
    """Import one image of a layout into the store, unless it is there."""
    with _locked(cache):
        if reference not in references(cache):
            _import(cache, layout=layout, name=name, reference=reference)


def add_to_running(root: Path, *, pid: int, layout: Layout, name: str, reference: str) -> None:
    """Import one image into a running cluster's containerd: its root on disk, a process in its mount namespace."""
    inside = ["nsenter", f"--target={pid}", "--mount"]
    ctr = [*inside, "ctr", f"--namespace={CONTAINERD_NAMESPACE}", "images"]
    listed = subprocess.run([*ctr, "list", "--quiet"], capture_output=True, text=True, timeout=60, check=False)
    if reference in listed.stdout.split():
        return
    present = {blob.name for blob in (root / _CONTENT).iterdir()}
    _stream([*ctr, "import", "-"], layout=layout, name=name, reference=reference, skip=frozenset(present))


def references(cache: CachePaths) -> list[str]:
    """What the store holds. Kept beside it: asking containerd would mean starting it."""
    try:
        return (cache.store / "references").read_text().split()
    except FileNotFoundError:
        return []


def clone(cache: CachePaths, *, target: Path) -> None:
    """Make a containerd root with all images of the store."""
    with _locked(cache):
        for database in (_METADATA, _SNAPSHOTTER / "metadata.db"):
            (target / database).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cache.store / database, target / database)
        (target / _CONTENT).mkdir(parents=True)
        for blob in (cache.store / _CONTENT).iterdir():
            os.link(blob, target / _CONTENT / blob.name)
        (target / _SNAPSHOTTER / "snapshots").mkdir(parents=True)
        for snapshot in (cache.store / _SNAPSHOTTER / "snapshots").iterdir():
            (target / _SNAPSHOTTER / "snapshots" / snapshot.name).symlink_to(snapshot)


def clear(cache: CachePaths) -> None:
    """Drop the store: the next import fills it anew."""
    with _locked(cache):
        shutil.rmtree(cache.store, ignore_errors=True)


def _locked(cache: CachePaths) -> AbstractContextManager[None]:
    return locked(cache.locks / "store.lock", timeout_seconds=_LOCK_SECONDS, wanted="the image store")


def _import(cache: CachePaths, *, layout: Layout, name: str, reference: str) -> None:
    """Run a containerd on the store for as long as the import takes, in namespaces that take everything along."""
    content = cache.store / _CONTENT
    content.mkdir(parents=True, exist_ok=True)
    # containerd finds blobs that are there already and only writes them down: no second copy of gigabytes.
    for digest in layout.digests(name):
        if not (content / digest).exists():
            _link_or_copy(layout.blobs / digest, content / digest)
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"]
    command = [*unshare, sys.executable, "-m", "localkube.store_session", str(cache.store)]
    _stream(command, layout=layout, name=name, reference=reference, skip=frozenset())
    with (cache.store / "references").open("a") as file:
        file.write(reference + "\n")


def _stream(command: list[str], *, layout: Layout, name: str, reference: str, skip: frozenset[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with tempfile.NamedTemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output)
        assert process.stdin is not None
        try:
            with process.stdin:
                layout.stream(name, reference=reference, skip=skip, out=process.stdin)
            code = process.wait(timeout=_IMPORT_SECONDS)
        except BrokenPipeError:
            code = process.wait(timeout=_IMPORT_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code != 0:
            tail = log_tail(Path(output.name), lines=15)
            raise LocalkubeError(f"importing {reference} exited {code}:\n{tail}")


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        partial = target.with_suffix(".partial")
        shutil.copyfile(source, partial)
        partial.rename(target)
