"""llama.cpp as a peer: the prebuilt program in the npm package node-llama-cpp, with parallel sequences in one batch.

The one job: fetch the package into the cache (nothing of it is built or run meanwhile) and put jobs to `llama_cpp_peer.mjs`.
Of its two ways to compute attention the faster one counts, workload by workload.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

VERSION: Final = "3.22.1"
_PACKAGES: Final = (f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/linux-x64@{VERSION}")
_INSTALL_SECONDS: Final = 600


class PeerMissing(Exception):
    """The package or node is not to be had; says why."""


def install(cache: Path) -> Path:
    """The folder that holds the package."""
    folder = cache / f"llama-cpp-{VERSION}"
    if (folder / "complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=optional", "--prefix", str(folder)]
    try:
        done = subprocess.run([*command, *_PACKAGES], capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissing(f"npm cannot be run: {error}") from error
    if done.returncode != 0:
        raise PeerMissing(f"npm could not install {' '.join(_PACKAGES)}: {done.stderr.strip()[-500:]}")
    (folder / "complete").touch()
    return folder


class Peer:
    """One process that has the model loaded."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.about = self._answer()

    def run(self, requests: list[dict[str, Any]], *, concurrency: int) -> dict[str, Any]:
        """Tokens and seconds of the faster way. ``requests``: ``prompt`` and ``answer_tokens`` each."""
        ways = [
            self._ask({"requests": requests, "concurrency": concurrency, "flash_attention": flash}) | {"flash_attention": flash}
            for flash in (True, False)
        ]
        return min(ways, key=lambda way: float(way["seconds"]))

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerMissing("llama.cpp's process ended: its own words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running(cache: Path, gguf_file: Path, *, threads: int) -> Iterator[Peer]:
    """A peer with this model. Raises PeerMissing."""
    command = ["node", str(Path(__file__).with_name("llama_cpp_peer.mjs")), str(install(cache)), str(gguf_file), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()
