"""A containerd on the image store, for one import.

The one job: start containerd on the given root, import the archive on standard input, end.
The invariant kept: run in fresh mount and pid namespaces (image_store.py), so nothing of it is left, however it ends.

Run as `python -m localkube.store_session ROOT`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from .errors import LocalkubeError
from .namespaces import run
from .node import CONTAINERD_SOCKET, containerd_config

_START_SECONDS = 30.0
_IMPORT_SECONDS = 900
_POLL_SECONDS = 0.03


def main(arguments: list[str]) -> int:
    """Import standard input into the root given; returns ctr's exit status."""
    (root,) = arguments
    run("mount", "-t", "tmpfs", "-o", "mode=755", "localkube", "/run")
    config = Path("/run/containerd.toml")
    # Blobs laid beside the database are unknown until the import names them: no collection before that.
    collector = '[plugins."io.containerd.gc.v1.scheduler"]\n  startup_delay = "24h"\n'
    config.write_text(containerd_config(root, cni="/run/cni", cri=False) + collector)
    log = Path("/run/containerd.log")
    with log.open("wb") as output:
        daemon = subprocess.Popen(["containerd", "--config", str(config)], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        ctr = ("ctr", f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io")
        deadline = time.monotonic() + _START_SECONDS
        while subprocess.run([*ctr, "version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise LocalkubeError(f"containerd did not start on {root}:\n{log.read_text()[-2000:]}")
            time.sleep(_POLL_SECONDS)
        return subprocess.run([*ctr, "images", "import", "-"], timeout=_IMPORT_SECONDS, check=False).returncode
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
