"""Handing an image to a running containerd without copying or unpacking it.

The one job: with an image's blobs already laid into a containerd's content folder, and its layers unpacked elsewhere on this
machine, make the image known and its layers snapshots: by hard links, or by pointing at a snapshot that never changes.
The invariant kept: containerd's own database changes only through containerd. An image is named last, when all of it is there.

Run inside containerd's mount namespace as `python -m localkube.adoption JOB.json`; store_session.py calls it too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import LocalkubeError
from .oci import Layout

CONTENT = Path("io.containerd.content.v1.content", "blobs", "sha256")
SNAPSHOTS = Path("io.containerd.snapshotter.v1.overlayfs", "snapshots")
_CTR = ("ctr", "--namespace=k8s.io")
_SECONDS = 900


@dataclass(frozen=True)
class Job:
    """One image for one containerd."""

    root: str  # of the containerd
    layout: str
    name: str
    reference: str
    sources: tuple[str, ...] = ()  # the unpacked layers from the lowest up; none: containerd unpacks
    point: bool = False  # point at the sources instead of linking their files

    def write(self, path: Path) -> None:
        """Store the job for the process that does it."""
        path.write_text(json.dumps(dataclasses.asdict(self)))


def read_job(path: Path) -> Job:
    """A stored job."""
    content = json.loads(path.read_text())
    return Job(**{**content, "sources": tuple(content["sources"])})


def adopt(job: Job) -> dict[str, str]:
    """Do the job. Returns the folder of every layer's snapshot, by chain identity."""
    layout = Layout(Path(job.layout))
    manifest = layout.manifest(job.name)
    layers = [layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]] if job.sources else []
    known = set(_ctr("content", "list", "--quiet").split())
    for digest in layers:
        if f"sha256:{digest}" not in known:
            _ingest(Path(job.root, CONTENT, digest), digest=digest)
    folders = _snapshots(layout.difference_digests(job.name), job=job) if job.sources else {}
    command = [*_CTR, "images", "import", *(["--no-unpack"] if job.sources else []), "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as importer:
        assert importer.stdin is not None
        assert importer.stdout is not None
        try:
            with importer.stdin:
                layout.stream(job.name, reference=job.reference, skip=frozenset(layers), out=importer.stdin)
        except BrokenPipeError:
            pass  # it says why below
        said = importer.stdout.read().decode(errors="replace")
    if importer.returncode != 0:
        raise LocalkubeError(f"ctr images import exited {importer.returncode}: {said.strip()[-500:]}")
    return folders


def chain_identities(differences: tuple[str, ...]) -> list[str]:
    """The identity of every stack of layers from the lowest up, as the OCI image specification defines it."""
    chain = [differences[0]]
    for difference in differences[1:]:
        chain.append(f"sha256:{hashlib.sha256(f'{chain[-1]} {difference}'.encode()).hexdigest()}")
    return chain


def _snapshots(differences: tuple[str, ...], *, job: Job) -> dict[str, str]:
    committed = {line.split()[0] for line in _ctr("snapshots", "list").splitlines() if line.endswith("Committed ")}
    folders: dict[str, str] = {}
    parent: list[str] = []
    for chain, source in zip(chain_identities(differences), job.sources, strict=True):
        if chain not in committed:
            folders[chain] = str(_snapshot(chain, parent=parent, source=source, point=job.point))
        parent = [chain]
    return folders


def _snapshot(chain: str, *, parent: list[str], source: str, point: bool) -> Path:
    key = f"adopt-{chain}"
    mounts = json.loads(_ctr("snapshots", "prepare", "--mounts", key, *parent))
    options = dict(option.partition("=")[::2] for option in mounts[0].get("Options") or [])
    folder = Path(options.get("upperdir") or mounts[0]["Source"])
    folder.rmdir()
    if point:
        folder.symlink_to(Path(source).resolve())
    else:
        _run("cp", "--archive", "--link", source, str(folder))
    _ctr("snapshots", "commit", chain, key)
    return folder


def _ingest(blob: Path, *, digest: str) -> None:
    """Have a blob that lies in the content folder written down: containerd finds it there and reads nothing."""
    command = [*_CTR, "content", "ingest", f"--expected-size={blob.stat().st_size}", f"--expected-digest=sha256:{digest}"]
    with blob.open("rb") as content:
        done = subprocess.run([*command, f"adopt-{digest}"], stdin=content, capture_output=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        raise LocalkubeError(f"ctr content ingest exited {done.returncode}: {done.stderr.decode().strip()}")
    # Until the image refers to it nothing else keeps the collector away.
    _ctr("content", "label", f"sha256:{digest}", "containerd.io/gc.root=adopted")


def _ctr(*arguments: str) -> str:
    return _run(*_CTR, *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        raise LocalkubeError(f"{' '.join(command)} exited {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


if __name__ == "__main__":
    adopt(read_job(Path(sys.argv[1])))
