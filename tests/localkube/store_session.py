"""A containerd on the image store, for one image.

The one job: start containerd on the store, hand it the image, end.
The invariant kept: run in fresh mount and pid namespaces (image_store.py), so nothing of it is left, however it ends.

Run as `python -m localkube.store_session JOB.json`; prints the folders of new snapshots as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from .adoption import adopt, read_job
from .errors import LocalkubeError
from .namespaces import run
from .node import CONTAINERD_SOCKET, containerd_config

_START_SECONDS = 30.0
_POLL_SECONDS = 0.03


def main(arguments: list[str]) -> int:
    """Do the job in the file named."""
    job = read_job(Path(arguments[0]))
    run("mount", "-t", "tmpfs", "-o", "mode=755", "localkube", "/run")
    config = Path("/run/containerd.toml")
    # Blobs laid beside the database are unknown until they are named: no collection before that.
    collector = '[plugins."io.containerd.gc.v1.scheduler"]\n  startup_delay = "24h"\n'
    config.write_text(containerd_config(job.root, cni="/run/cni", cri=False) + collector)
    log = Path("/run/containerd.log")
    with log.open("wb") as output:
        daemon = subprocess.Popen(["containerd", "--config", str(config)], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        version = ("ctr", f"--address={CONTAINERD_SOCKET}", "version")
        deadline = time.monotonic() + _START_SECONDS
        while subprocess.run(version, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise LocalkubeError(f"containerd did not start on {job.root}:\n{log.read_text()[-2000:]}")
            time.sleep(_POLL_SECONDS)
        print(json.dumps(adopt(job)))
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
