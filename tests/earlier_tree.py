"""This repository as it was at an earlier commit, for tests of upgrades.

The one job: a folder with that commit's chart and code, from which both images can be made.
The invariant kept: dependencies are today's (Dockerfile, locks), so that of its images only the code is not there already.
Not done here: building and installing it (`localkube`).
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import yaml

import crd_schema

ROOT = Path(__file__).parents[1]
COMMIT = "44a306f15f3de360556c1feb02a4ba07c42af7b6"
"""Before HTTPS, ranks that come and go, watching monitors and the admission policy."""
_CODE = ("charts", "operator", "engine_image")
_TODAYS = ("Dockerfile", ".dockerignore", "locks")
_GIT = ("git", "-c", "safe.directory=*", "-C", str(ROOT))
_SECONDS = 60


class NoHistoryError(Exception):
    """The commit is not in this clone."""


def make(folder: Path) -> Path:
    """Lay it out there. Raises NoHistoryError."""
    archive = folder.with_suffix(".tar")
    command = [*_GIT, "archive", f"--output={archive}", COMMIT, *_CODE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        raise NoHistoryError(f"commit {COMMIT[:7]} is not in this clone, so try git fetch --unshallow: {done.stderr.strip()}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
    for name in _TODAYS:
        found = ROOT / name
        (shutil.copytree if found.is_dir() else shutil.copy2)(found, folder / name)
    return folder


def without(field: str, *, chart: Path) -> Path:
    """The chart, whose engines do not have this field of the spec yet."""
    path = chart / "files" / "crds" / "inferenceengines.yaml"
    definition = yaml.safe_load(path.read_text())
    del crd_schema.schema(definition)["properties"]["spec"]["properties"][field]
    path.write_text(yaml.safe_dump(definition, sort_keys=False))
    return chart
