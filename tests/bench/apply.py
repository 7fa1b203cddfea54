"""make bench NAME=apply: from `kubectl apply` to Ready to the first token, by part, on a real kubelet with the real model.

The one job: watch the objects of one engine while it comes up, several times, and say where the time went.
Nothing is compared with a peer here: the parts are the figure. The images are on the node already (a pull is not ours).
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import record
import yaml

from localkube import cluster, model
from localkube.installation import Installation, install
from localkube.paths import CachePaths, cache_root

ROOT = Path(__file__).parents[2]
NAMESPACE = "bench"
REPEATS = 5
FIRST_TOKEN_LIMIT_SECONDS = 90.0
"""The demo's bar for everything, cluster start included: apply to token is a part of it."""

PARTS = (
    "replica made",
    "pod made",
    "pod scheduled",
    "monitor runs",
    "row stored",
    "engine runs",
    "rank serves",
    "Ready",
    "first token",
)


class Watch(threading.Thread):
    """Follow the engine's objects and note when each part was first seen, in seconds since `began`."""

    def __init__(self, installation: Installation, began: float) -> None:
        super().__init__(daemon=True)
        self.seen: dict[str, float] = {}
        self.ready = threading.Event()
        self._began = began
        kubectl = str(installation.cluster.binaries / "kubectl")
        command = [kubectl, "-n", NAMESPACE, "get", "ie,ier,pods", "--watch", "--output-watch-events", "-o", "json"]
        # kubectl watches one kind at a time.
        self._streams = [
            subprocess.Popen(
                [*command[:4], kind, *command[5:]], env=installation.cluster.environment, stdout=subprocess.PIPE, text=True
            )
            for kind in ("ie", "ier", "pods")
        ]

    def run(self) -> None:
        readers = [threading.Thread(target=self._read, args=(stream,), daemon=True) for stream in self._streams]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    def stop(self) -> None:
        for stream in self._streams:
            stream.terminate()
            stream.wait()

    def _read(self, stream: subprocess.Popen[str]) -> None:
        for line in stream.stdout or ():  # kubectl prints one event a line
            self._look(json.loads(line)["object"])

    def _note(self, part: str) -> None:
        self.seen.setdefault(part, time.monotonic() - self._began)

    def _look(self, found: dict[str, Any]) -> None:
        status = found.get("status", {})
        conditions = {entry["type"]: entry["status"] for entry in status.get("conditions", [])}
        if found["kind"] == "EngineReplica":
            self._note("replica made")
            for member in status.get("members", []):
                self._note("row stored")
                if any(rank.get("state") == "Serving" for rank in member.get("ranks", [])):
                    self._note("rank serves")
        elif found["kind"] == "Pod":
            self._note("pod made")
            if conditions.get("PodScheduled") == "True":
                self._note("pod scheduled")
            for key, part in (("initContainerStatuses", "monitor runs"), ("containerStatuses", "engine runs")):
                if any("running" in container["state"] for container in status.get(key, [])):
                    self._note(part)
        elif conditions.get("Ready") == "True":
            self._note("Ready")
            self.ready.set()


def first_token(installation: Installation) -> None:
    """Ask for one token through the service."""
    with installation.reached("smollm2", namespace=NAMESPACE) as base:
        body = json.dumps({"model": "smollm2", "prompt": "Hello", "max_tokens": 1}).encode()
        request = urllib.request.Request(f"{base}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()


def one_run(installation: Installation, engine: dict[str, Any]) -> dict[str, float]:
    began = time.monotonic()
    watch = Watch(installation, began)
    watch.start()
    try:
        installation.kubectl("apply", "-f", "-", namespace=NAMESPACE, stdin=yaml.safe_dump(engine))
        if not watch.ready.wait(300):
            raise SystemExit(f"not Ready after 300 s, seen: {watch.seen}")
        first_token(installation)
        watch.seen["first token"] = time.monotonic() - began
    finally:
        watch.stop()
        installation.kubectl("delete", "ie/smollm2", "--wait", namespace=NAMESPACE, timeout_seconds=120)
        installation.kubectl("wait", "--for=delete", "pods", "--all", "--timeout=120s", namespace=NAMESPACE, timeout_seconds=130)
    return watch.seen


def main() -> int:
    running = cluster.from_environment_or_start("bench")
    try:
        installation = install(running)
        gguf = model.ensure(CachePaths(cache_root()))
        running.kubectl("create", "namespace", NAMESPACE)
        volume = re.sub(r"(?m)^(\s+path:).*$", rf"\1 {gguf.parent}", (ROOT / "examples" / "smollm2-volume.yaml").read_text())
        installation.kubectl("apply", "-f", "-", namespace=NAMESPACE, stdin=volume)
        engine = yaml.safe_load((ROOT / "examples" / "smollm2.yaml").read_text())
        engine["spec"]["replicas"] = 1
        runs = [one_run(installation, engine) for _ in range(REPEATS)]
    finally:
        running.stop()
    medians = {part: round(statistics.median(run[part] for run in runs), 2) for part in PARTS}
    for part, seconds in medians.items():
        print(f"{seconds:7.2f} s  {part}")
    bars = [record.at_most("apply to first token", medians["first token"], limit=FIRST_TOKEN_LIMIT_SECONDS, unit="s")]
    return record.write("apply", figures={"seconds_since_apply": medians, "runs": runs}, bars=bars, repeats=REPEATS)


if __name__ == "__main__":
    sys.exit(main())
