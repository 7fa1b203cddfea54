"""Claims of folders of this machine that models lie in, for a test's namespace: restricted pods may not name a folder of the node.

The one job: the examples' own volume and claim with another name and folder. Not done here: applying them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from localkube import model
from localkube.paths import CachePaths, cache_root

EXAMPLES = Path(__file__).parents[1] / "examples"


def claim(name: str, folder: Path, *, namespace: str) -> list[dict[str, Any]]:
    """``examples/smollm2-volume.yaml``, of that folder. Volumes are cluster-wide: this one's name says the namespace too."""
    volume, claimed = yaml.safe_load_all((EXAMPLES / "smollm2-volume.yaml").read_text())
    volume["metadata"]["name"] = claimed["spec"]["volumeName"] = f"{name}-{namespace}"
    volume["spec"]["hostPath"]["path"] = str(folder)
    volume["spec"].pop("claimRef", None)
    claimed["metadata"]["name"] = name
    return [volume, claimed]


def volume(namespace: str) -> list[dict[str, Any]]:
    """The claim that the examples name, of this machine's model."""
    return claim("smollm2", model.ensure(CachePaths(cache_root())).parent, namespace=namespace)


def mounted(name: str) -> dict[str, Any]:
    """A pod's volume ``models``, of that claim."""
    return {"name": "models", "persistentVolumeClaim": {"claimName": name}}


def example(name: str) -> dict[str, Any]:
    """The engine of one example."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return found
