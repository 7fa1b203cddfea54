"""`make demo`: a Kubernetes, the operator, a real language model, an answer, a death.

The one job: walk a stranger through the product on real parts, timing each step, ending with what to try next.
With KUBECONFIG set it plays on that cluster, and --registry says where the two images were pushed.
Does not test anything: a step that fails ends the demo with the words of the command that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localkube import cluster, model
from localkube.errors import LocalkubeError
from localkube.installation import SYSTEM_NAMESPACE, Installation, install
from localkube.paths import CachePaths, cache_root

EXAMPLES = Path(__file__).parent
NAMESPACE = "demo"
READY_SECONDS = 300
QUESTION = "What is the capital of France, and what is it known for?"


@contextmanager
def step(title: str) -> Iterator[None]:
    """A heading before, the time after."""
    began = time.monotonic()
    print(f"\n== {title}", flush=True)
    yield
    print(f"   ({time.monotonic() - began:.1f} s)", flush=True)


class Demo:
    """The commands of the demo, shown as they run."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self._installation.kubectl(*arguments, namespace=NAMESPACE, stdin=stdin, timeout_seconds=READY_SECONDS + 30)

    def show(self, *arguments: str) -> None:
        """Print the command as the reader would type it, and what it says."""
        print(f"$ kubectl {' '.join(arguments)}\n{self.kubectl(*arguments).rstrip()}", flush=True)

    def apply(self, model_folder: Path) -> None:
        self.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        )
        volume = (EXAMPLES / "smollm2-volume.yaml").read_text()
        self.kubectl("apply", "-f", "-", stdin=re.sub(r"(?m)^(\s+path:).*$", rf"\1 {model_folder}", volume))
        self.show("apply", "-f", str((EXAMPLES / "smollm2.yaml").relative_to(Path.cwd())))
        self.wait("Ready")
        self.show("get", "ie,ier")

    def wait(self, condition: str) -> None:
        self.show("wait", f"--for=condition={condition}", "ie/smollm2", f"--timeout={READY_SECONDS}s")

    def ask(self) -> None:
        """One chat answer, printed as it streams."""
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 80,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with self._installation.reached("smollm2", namespace=NAMESPACE) as base:
            request = urllib.request.Request(
                f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            print(f"> {QUESTION}\n< ", end="", flush=True)
            with urllib.request.urlopen(request, timeout=60) as answer:
                for line in answer:
                    event = line.decode().strip().removeprefix("data: ")
                    if event in ("", "[DONE]"):
                        continue
                    chunk = json.loads(event)
                    for choice in chunk["choices"]:
                        print(choice["delta"].get("content") or "", end="", flush=True)
                    if chunk.get("usage"):
                        print(f"\n  {chunk['usage']}", flush=True)

    def kill_an_engine_core(self) -> None:
        """From kill -9 to Ready again."""
        pod = self.kubectl("get", "pods", "-l", "enginehouse.dev/serving=true", "-o", "name").split()[0]
        began = time.monotonic()
        print(f"in {pod}: {self._installation.kill_engine_cores(pod, namespace=NAMESPACE)}")
        self.wait("Ready=False")
        print(f"   known {time.monotonic() - began:.1f} s after the kill; the other replica goes on serving:")
        self.show("get", "ie,ier")
        self.wait("Ready")
        print(f"   Ready again {time.monotonic() - began:.1f} s after the kill, the rank started again in the same pod:")
        self.show("get", "ie,ier")
        self.show("get", "ie/smollm2", "-o", "jsonpath={.status.lastFailure}")
        self.show("events", "--for", "inferenceengine/smollm2")


def up(registry: str | None) -> None:
    """The whole demo."""
    began = time.monotonic()
    print("The first run builds Kubernetes and both images: tens of minutes on two cores, about a minute from then on.")
    with step("A Kubernetes, both images, the operator by Helm, and the model's file"):
        running = cluster.from_environment_or_start("demo")
        demo = Demo(install(running, registry=registry))
        model_folder = model.ensure(CachePaths(cache_root())).parent
    with step("One InferenceEngine"):
        demo.apply(model_folder)
    with step("A question"):
        demo.ask()
    print(f"   answered {time.monotonic() - began:.0f} s after make demo")
    with step("kill -9 an engine core"):
        demo.kill_an_engine_core()
    print(f"""
== What to try next
  export KUBECONFIG={running.kubeconfig} PATH={running.binaries}:$PATH
  kubectl -n {NAMESPACE} describe ie smollm2                  the whole story: conditions and events
  kubectl -n {NAMESPACE} scale ie/smollm2 --replicas=1        broken replicas go first, the rest is drained
  kubectl -n {NAMESPACE} port-forward service/smollm2 8080:80 then any OpenAI client at http://127.0.0.1:8080/v1
  make demo-down                                        removes everything but the caches""")


def down() -> None:
    """Remove everything but caches."""
    if not os.environ.get("KUBECONFIG"):
        cluster.stop("demo")
        return
    yours = cluster.from_environment_or_start("demo")
    yours.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout_seconds=READY_SECONDS)
    command = [str(yours.binaries / "helm"), "uninstall", "enginehouse", "--namespace", SYSTEM_NAMESPACE]
    subprocess.run(command, env=yours.environment, timeout=READY_SECONDS, check=False)


def main() -> int:
    """Run one verb; 1 when a step failed."""
    parser = argparse.ArgumentParser(description="Enginehouse on a real Kubernetes, from nothing to a token.")
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("--registry", help="where both images were pushed, when KUBECONFIG names a cluster of yours")
    options = parser.parse_args()
    try:
        down() if options.verb == "down" else up(options.registry)
    except LocalkubeError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except (subprocess.TimeoutExpired, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
