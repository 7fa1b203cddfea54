"""OCI image layouts: folders of blobs named by their digest.

The one job: read a layout, write a single-layer image into one, and stream an image as the archive `ctr images import` reads.
The invariant kept: a blob's name is its content's digest; nothing is ever changed under its name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_NAME = "org.opencontainers.image.ref.name"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class BlobWriter(io.RawIOBase):
    """A blob that gets its name when it is complete."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._partial = folder / f"partial-{os.getpid()}"
        self._file = self._partial.open("wb")
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    @property
    def digest(self) -> str:
        """The hexadecimal digest of what was written so far."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Append."""
        self._hash.update(data)
        self._file.write(data)
        self.size_bytes += len(data)
        return len(data)

    def finish(self) -> None:
        """Give the blob its name."""
        self._file.close()
        self._partial.rename(self._folder / self.digest)

    def discard(self) -> None:
        """Forget what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


@contextmanager
def write_blob(folder: Path) -> Iterator[BlobWriter]:
    """Write one blob; an error inside leaves nothing."""
    writer = BlobWriter(folder)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise
    writer.finish()


@dataclass(frozen=True)
class Layout:
    """One layout folder."""

    root: Path

    @property
    def blobs(self) -> Path:
        """Where the blobs lie."""
        return self.root / "blobs" / "sha256"

    def manifests(self) -> dict[str, dict[str, Any]]:
        """The manifest descriptor of every image in the layout, by its reference name."""
        try:
            index = json.loads((self.root / "index.json").read_text())
        except FileNotFoundError:
            return {}
        entries = index.get("manifests", [])
        return {entry.get("annotations", {}).get(_NAME, ""): entry for entry in entries}

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of one image."""
        content: dict[str, Any] = json.loads((self.blobs / _hex(self.manifests()[name])).read_text())
        return content

    def difference_digests(self, name: str) -> tuple[str, ...]:
        """The digests of an image's unpacked layers from the lowest up."""
        config = json.loads((self.blobs / _hex(self.manifest(name)["config"])).read_text())
        return tuple(config["rootfs"]["diff_ids"])

    def digests(self, name: str) -> tuple[str, ...]:
        """Every blob of one image: manifest, configuration, layers from the lowest up. Hexadecimal, without algorithm."""
        descriptor, manifest = self.manifests()[name], self.manifest(name)
        parts = (descriptor, manifest["config"], *manifest["layers"])
        return tuple(dict.fromkeys(_hex(part) for part in parts))

    def forget_others(self, names: set[str]) -> None:
        """Keep only these images and their blobs."""
        kept = {name: entry for name, entry in self.manifests().items() if name in names}
        self._write_index(kept)
        wanted = {digest for name in kept for digest in self.digests(name)}
        for blob in self.blobs.iterdir():
            if blob.name not in wanted:
                blob.unlink()

    def stream(self, name: str, *, reference: str, skip: frozenset[str], out: IO[bytes]) -> None:
        """Write the image as an archive; `skip` names blobs the receiver has."""
        annotations = {"io.containerd.image.name": reference}
        entry = {**self.manifests()[name], "annotations": annotations}
        with tarfile.open(fileobj=out, mode="w|") as archive:
            _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            for digest in self.digests(name):
                if digest not in skip:
                    archive.add(self.blobs / digest, arcname=f"blobs/sha256/{digest}", recursive=False)
            _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())

    def write_image(self, name: str, *, files: dict[str, bytes], entrypoint: tuple[str, ...]) -> None:
        """Make a one-layer image of executables."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            for path, content in files.items():
                _add(archive, path, content)
        described = self._store(layer.getvalue(), media_type=LAYER_TYPE)
        config = {
            "architecture": _ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {"Entrypoint": list(entrypoint), "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [described["digest"]]},
        }
        self.add(name, config=config, layers=[described])

    def add(self, name: str, *, config: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        """Put an image of layers that are here into the index, in place of one of the same name."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": self._store(json.dumps(config).encode(), media_type=_CONFIG_TYPE),
            "layers": layers,
        }
        entry = self._store(json.dumps(manifest).encode(), media_type=_MANIFEST_TYPE)
        entry["annotations"] = {_NAME: name}
        self._write_index({**self.manifests(), name: entry})

    def _write_index(self, manifests: dict[str, dict[str, Any]]) -> None:
        (self.root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(manifests.values())}))

    def _store(self, content: bytes, *, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _hex(descriptor: dict[str, Any]) -> str:
    return str(descriptor["digest"]).removeprefix("sha256:")


def _add(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mode = len(content), 0o755
    archive.addfile(member, io.BytesIO(content))
