"""buildah, and what it keeps.

The one job: run buildah on a storage of our own, and turn an image in that storage into an OCI layout.
The invariant kept: a layer is exported once; an image whose lower layers are exported costs only its new ones. (`buildah push`
compresses every layer again each time: over a minute for the engine image, whatever changed.)
Not done here: what to build (images.py).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LocalkubeError
from .oci import LAYER_TYPE, Layout, write_blob
from .paths import CachePaths

_BUILD_SECONDS = 3600
_OPAQUE = "trusted.overlay.opaque"


@dataclass(frozen=True)
class BuildStorage:
    """One buildah storage below the cache."""

    cache: CachePaths

    @property
    def _root(self) -> Path:
        return self.cache.images / "storage"

    @property
    def layout(self) -> Layout:
        """Where exported images go."""
        return Layout(self.cache.images / "oci")

    def script(self, text: str, *, what: str, environment: dict[str, str] | None = None) -> str:
        """Run a shell script in which $BUILDAH is buildah on this storage; mounts it leaves vanish with its namespace."""
        self.cache.images.mkdir(parents=True, exist_ok=True)
        buildah = f"buildah --root {self._root} --runroot {self.cache.images / 'run'} --storage-driver overlay"
        # buildah notes digests below /var/lib whatever its root is: give it memory there.
        memory = "mkdir -p /var/lib/containers\nmount -t tmpfs localkube /var/lib/containers\n"
        # And it locks a folder of network configuration that no build here uses.
        settings = self.cache.images / "containers.conf"
        settings.write_text(f'[network]\nnetwork_config_dir = "{self.cache.images / "run" / "cni"}"\n')
        log = self.cache.images / "build.log"
        with log.open("ab") as output:
            done = subprocess.run(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc", memory + text],
                env={**os.environ, **(environment or {}), "BUILDAH": buildah, "CONTAINERS_CONF": str(settings)},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, timeout=_BUILD_SECONDS, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise LocalkubeError(f"{what} exited {done.returncode}:\n{tail}\nAll of it: {log}")
        return done.stdout.decode()

    def forget_mounts(self) -> None:
        """Drop run-time notes of a build that was cut short: its mounts are gone with its namespace."""
        shutil.rmtree(self.cache.images / "run", ignore_errors=True)
        (self.cache.images / "build.log").unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Every named image in the storage."""
        return {name for image in self._read("overlay-images/images.json") for name in image.get("names") or []}

    def export(self, name: str) -> None:
        """Write the image to the layout under its own name."""
        image = self._image(name)
        folder = self._root / "overlay-images" / image["id"]
        manifest = json.loads((folder / "manifest").read_text())
        key = base64.b64encode(manifest["config"]["digest"].encode()).decode()
        config = json.loads((folder / f"={key}").read_text())
        layers = [self._export_layer(layer) for layer in self._layers(image["layer"])]
        if len(layers) != len(config["rootfs"]["diff_ids"]):
            raise LocalkubeError(
                f"image {name}: {len(layers)} layers in storage, {len(config['rootfs']['diff_ids'])} in its configuration"
            )
        # Uncompressed: a layer's digest is its difference's digest.
        config["rootfs"]["diff_ids"] = [layer["digest"] for layer in layers]
        self.layout.add(name, config=config, layers=layers)

    def unpacked(self, name: str) -> tuple[Path, ...]:
        """The folders of an image's layers from the lowest up."""
        return tuple(self._root / "overlay" / layer["id"] / "diff" for layer in self._layers(self._image(name)["layer"]))

    def prune(self, keep: set[str], *, exported: set[str]) -> None:
        """Drop every named image but these and layers nothing needs; in the layout, everything not named `exported`."""
        for name in sorted(self.names() - keep):
            self.script(f"$BUILDAH rmi --force {name} >/dev/null", what="removing an old image")
        self.layout.forget_others(exported)

    def _image(self, name: str) -> dict[str, Any]:
        return next(image for image in self._read("overlay-images/images.json") if name in (image.get("names") or []))

    def _layers(self, top: str) -> list[dict[str, Any]]:
        """The layers from the lowest up."""
        layers = {layer["id"]: layer for layer in self._read("overlay-layers/layers.json")}
        chain = []
        identity: str | None = top
        while identity:
            chain.append(layers[identity])
            identity = layers[identity].get("parent")
        return chain[::-1]

    def _export_layer(self, layer: dict[str, Any]) -> dict[str, Any]:
        notes = self.cache.images / "exported.json"
        exported: dict[str, dict[str, Any]] = json.loads(notes.read_text()) if notes.exists() else {}
        known = exported.get(layer["diff-digest"])
        blobs = self.layout.blobs
        if known is None or not (blobs / known["digest"].removeprefix("sha256:")).exists():
            with write_blob(blobs) as writer, tarfile.open(fileobj=writer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                _archive(self._root / "overlay" / layer["id"] / "diff", archive=archive)
            known = {"digest": f"sha256:{writer.digest}", "size": writer.size_bytes}
            notes.write_text(json.dumps({**exported, layer["diff-digest"]: known}))
        return {"mediaType": LAYER_TYPE, **known}

    def _read(self, file: str) -> list[dict[str, Any]]:
        try:
            return list(json.loads((self._root / file).read_text()))
        except FileNotFoundError:
            return []


def _archive(root: Path, *, archive: tarfile.TarFile) -> None:
    """One overlay difference as a layer: deletions become white-out files, everything else goes as it is."""
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        inside = os.path.relpath(folder, root)
        if inside != ".":
            archive.add(folder, arcname=inside, recursive=False)
            if _is_opaque(folder):
                _white_out(archive, os.path.join(inside, ".wh..wh..opq"))
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(files + links):
            path, arcname = os.path.join(folder, name), os.path.normpath(os.path.join(inside, name))
            status = os.lstat(path)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                _white_out(archive, os.path.join(os.path.dirname(arcname), f".wh.{name}"))
            else:
                archive.add(path, arcname=arcname, recursive=False)


def _is_opaque(folder: str) -> bool:
    try:
        return os.getxattr(folder, _OPAQUE) == b"y"
    except OSError:
        return False  # the attribute is absent


def _white_out(archive: tarfile.TarFile, path: str) -> None:
    archive.addfile(tarfile.TarInfo(path))
