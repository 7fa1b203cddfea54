"""The volume that the examples' model lies in, for a test's namespace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from localkube import model
from localkube.paths import CachePaths, cache_root

EXAMPLES = Path(__file__).parents[1] / "examples"


def volume(namespace: str) -> list[dict[str, Any]]:
    """``examples/smollm2-volume.yaml``, of this machine's model."""
    gguf = model.ensure(CachePaths(cache_root()))
    manifests = list(yaml.safe_load_all((EXAMPLES / "smollm2-volume.yaml").read_text()))
    for manifest in manifests:
        if manifest["kind"] == "PersistentVolume":
            manifest["metadata"]["name"] = f"smollm2-{namespace}"
            manifest["spec"]["hostPath"]["path"] = str(gguf.parent)
            manifest["spec"].pop("claimRef", None)
        else:
            manifest["spec"]["volumeName"] = f"smollm2-{namespace}"
    return manifests


def example(name: str) -> dict[str, Any]:
    """The engine of one example."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return found
