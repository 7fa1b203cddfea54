"""A real Kubernetes with the operator in it, once per session, and a namespace per test.

With KUBECONFIG set the tests use that cluster; ENGINEHOUSE_TEST_REGISTRY then says where both images were pushed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import example_model
import restricted_namespace
import small_model as small_model_files
from cluster_history import History
from kubectl_plugin import Plugin
from localkube import cluster
from localkube.installation import Installation, install

READY_SECONDS = 180


@dataclass(frozen=True)
class Space:
    """One namespace of the cluster, and what a user does in it."""

    installation: Installation
    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = READY_SECONDS + 30) -> str:
        return self.installation.kubectl(*arguments, namespace=self.namespace, stdin=stdin, timeout_seconds=timeout_seconds)

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def get(self, *what: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", *what, "-o", "json"))
        return found

    def items(self, *what: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(*what)["items"]
        return found

    def wait(self, condition: str, *, name: str, seconds: float = READY_SECONDS) -> None:
        """Wait for a condition of an engine; on a timeout the failure shows what `describe` says."""
        try:
            self.kubectl("wait", f"--for=condition={condition}", f"ie/{name}", f"--timeout={seconds:.0f}s")
        except Exception as error:
            story = self.kubectl("describe", "ie,ier,pods") + self.pod_logs()
            raise AssertionError(f"{name} is not {condition} after {seconds:.0f} s\n{story[-12000:]}") from error

    def lives(self) -> dict[str, int]:
        """UIDs of pods, each with how often its containers were started again."""

        def restarts(status: dict[str, Any]) -> int:
            found = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
            return sum(container["restartCount"] for container in found)

        return {pod["metadata"]["uid"]: restarts(pod["status"]) for pod in self.items("pods")}

    def pod_logs(self) -> str:
        """The ends of all logs, for a failure message."""
        texts = []
        for pod in self.kubectl("get", "pods", "-o", "name").split():
            for container in ("monitor", "engine"):
                with contextlib.suppress(Exception):
                    texts.append(f"\n--- {pod} {container}\n" + self.kubectl("logs", pod, "-c", container, "--tail=30"))
        return "".join(texts)

    def eventually(self, what: str, check: Callable[[], bool], *, seconds: float = 60) -> None:
        """Until the API shows it; used for states that no condition names."""
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.2)

    def post(self, service: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and decoded body of one request through the engine's service."""
        with self.installation.reached(service, namespace=self.namespace) as base:
            return _post(f"{base}{path}", body)


def _post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    running = cluster.from_environment_or_start("test")
    yield install(running, registry=os.environ.get("ENGINEHOUSE_TEST_REGISTRY"))
    running.stop()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that loads in a moment."""
    folder = tmp_path_factory.mktemp("small-model")
    small_model_files.make(folder)
    return folder


def _make_namespace(installation: Installation, namespace: str) -> None:
    """Every engine of these tests is of one, so the API server judges all their pods."""
    manifest = restricted_namespace.manifest(namespace)
    installation.cluster.kubectl("create", "-f", "-", stdin=json.dumps(manifest))


@pytest.fixture
def new_space() -> Callable[[Installation], AbstractContextManager[Space]]:
    """For tests with an installation of their own."""

    @contextlib.contextmanager
    def made(installation: Installation) -> Iterator[Space]:
        namespace = f"test-{uuid.uuid4().hex[:8]}"
        _make_namespace(installation, namespace)
        yield Space(installation, namespace)
        installation.cluster.kubectl("delete", "namespace", namespace, "--wait=false")

    return made


@pytest.fixture
def space(installation: Installation, new_space: Callable[[Installation], AbstractContextManager[Space]]) -> Iterator[Space]:
    with new_space(installation) as made:
        yield made


@pytest.fixture
def plugin(space: Space, tmp_path: Path) -> Plugin:
    """``kubectl enginehouse`` of the space's user."""
    return Plugin(space.installation.cluster, space.namespace, tmp_path)


@pytest.fixture(scope="module")
def history(installation: Installation) -> Iterator[History]:
    """What happens in a namespace that the engines of one module share."""
    if not installation.cluster.owned:
        pytest.skip("KUBECONFIG names the cluster: its processes are not this machine's")
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    _make_namespace(installation, namespace)
    with History(installation.cluster, namespace).watching() as watched:
        yield watched
    installation.cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="module")
def model_claim(installation: Installation, history: History, small_model: Path) -> str:
    """The name, in the namespace of the history, of a claim of that folder."""
    name = "small"
    manifests = yaml.safe_dump_all(example_model.claim(name, small_model, namespace=history.namespace))
    installation.kubectl("apply", "-f", "-", namespace=history.namespace, stdin=manifests)
    return name


@pytest.fixture
def post() -> Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]:
    """One request: status and decoded body."""
    return _post
