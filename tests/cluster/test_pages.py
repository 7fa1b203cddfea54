"""The commands of the pages, as a reader types them: the tutorial from its first line to its last, then those of all other pages.

Every command is run, but for those that are listed here with a reason. Outside the tutorial, what would change something is asked
to change nothing (`--dry-run`), but for the plugin's drain and an upgrade of the chart to itself.
Not done here: manifests (`tests/api/test_examples.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import kubectl_plugin
import page_blocks
import restricted_namespace
from killed_engine import simulated
from localkube import model
from localkube.binaries import KUBERNETES, KUBERNETES_VERSIONS
from localkube.installation import SYSTEM_NAMESPACE, Installation, install
from localkube.paths import CachePaths, cache_root
from page_blocks import Command
from unused_port import unused_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

TUTORIAL = "docs/tutorial.md"
PLUGIN = "docs/kubectl-plugin.md"
IMAGES = "both images are built and brought to the cluster by localkube, which knows no Docker and no registry"
LOCALKUBE = "another cluster: tests/cluster/test_localkube.py starts and stops some"
TESTS = "runs tests, this one among them"
WHEEL = "tests/unit/layout/test_wheel.py installs; here the plugin is put on the PATH as an installation does"
ARGO_CD = "not on this cluster: tests/api/test_examples.py applies both files where its kinds are known"
NOT_RUN = {
    "docker build --target operator -t REGISTRY/enginehouse-operator:0.1.0 .": IMAGES,
    "docker build --target engine -t REGISTRY/enginehouse-engine:0.1.0 .": IMAGES,
    "docker push REGISTRY/enginehouse-operator:0.1.0": IMAGES,
    "docker push REGISTRY/enginehouse-engine:0.1.0": IMAGES,
    "make demo": "builds a cluster of its own; its commands are those of the tutorial",
    "kubectl wait --for=condition=Ready=False ie/smollm2 --timeout=300s": "the demo's: it is true for a moment",
    "make test": TESTS,
    "pip install .": WHEEL,
    "pip install '.[engine]'": WHEEL,
    "enginehouse-engine --model ./SmolLM2-135M-Instruct.Q4_1.gguf --port 8000": "tests/unit/test_engine_process.py does",
    "kubectl enginehouse drain chat-1-laeudliz": "refused while the first one drains: tests/api/operator/test_kubectl_plugin.py",
    "kubectl apply --server-side -n argocd -f examples/gitops/argocd/argocd-cm.yaml": ARGO_CD,
    "kubectl apply -n argocd -f examples/gitops/argocd/applications.yaml": ARGO_CD,
    "kubectl wait --for=condition=Ready": "says what the flag is called",
    "export PYTHONPATH=tests": LOCALKUBE,
    "python -m localkube start demo": LOCALKUBE,
    "python -m localkube kubectl demo -- get nodes": LOCALKUBE,
    "python -m localkube stop demo": LOCALKUBE,
    "kubectl NAME -- ...": LOCALKUBE,
    "apt-get install --no-install-recommends $(python -m localkube packages)": "installs what this machine has",
    "pytest -m cluster -s tests/cluster/test_kill_matrix.py -k real-engine-core-serving-sigsegv": TESTS,
    'pytest -m "cluster and slow" tests/cluster/test_kill_matrix.py   # the rest of the product, as in make proof': TESTS,
}
REUSE = "--reset-then-reuse-values"
MONITORING = f"""helm upgrade enginehouse charts/enginehouse --namespace enginehouse-system {REUSE} \\
    --set monitoring.podMonitors=true --set monitoring.rules=true --set monitoring.dashboard=true \\
    --set monitoring.labels.release=prometheus"""
INSTEAD = {
    # The Prometheus Operator's kinds are not on this cluster.
    MONITORING: MONITORING.replace("helm upgrade", f"helm template --kube-version {KUBERNETES_VERSIONS[KUBERNETES]}").replace(
        REUSE, ""
    ),
    # Without an end; a reader sees in it what this waits for.
    "kubectl get ie smollm2 --watch": "kubectl wait --for=jsonpath={.status.lastFailure.signal}=9 ie/smollm2 --timeout=60s",
    # Nothing here was started twice.
    "kubectl -n enginehouse-system logs deployment/enginehouse-operator --previous": (
        "kubectl -n enginehouse-system logs deployment/enginehouse-operator"
    ),
    "kubectl -n NAMESPACE logs POD -c monitor --previous": "kubectl -n NAMESPACE logs POD -c monitor",
}
EXIT_STATUS = {
    "kubectl enginehouse why killed": 1,
    'kubectl -n enginehouse-system logs deployment/enginehouse-operator | grep "a bug"': 1,
}
ENDLESS = {"kubectl port-forward service/smollm2 8080:80": "Forwarding from"}
"""Runs beside the others from when it has said this."""
LINES_MAY_DIFFER = {"kubectl enginehouse logs chat --since 5m": "what is shown was said by pods that are on their way out"}

ALL = list(page_blocks.commands())
WALKED = {command.text for command in ALL if command.page == TUTORIAL}
CHANGES = re.compile(r"kubectl (?:apply|patch|scale|delete|create|annotate) |helm install ")


def others() -> dict[str, list[Command]]:
    """By page, the plugin's last: its drain ends a replica. What several pages have is run once."""
    found: dict[str, list[Command]] = {}
    known = WALKED | NOT_RUN.keys()
    for command in sorted(ALL, key=lambda one: one.page == PLUGIN):
        if command.text not in known:
            found.setdefault(command.page, []).append(command)
            known.add(command.text)
    return found


OTHERS = others()


@dataclass
class Reader:
    """Somebody with a shell, in a clone, whose context names a namespace. ``words`` are what he puts for a page's."""

    environment: dict[str, str]
    clone: Path
    words: dict[str, str | Callable[[], str]]

    def types(self, command: Command, *, dry: bool = False) -> str:
        """Run to its end; what it says has the columns, and of a story the lines, that pages show for it."""
        text = self.put(INSTEAD.get(command.text, command.text))
        if dry and CHANGES.match(text):
            text += " --dry-run=server"
        done = subprocess.run(
            ["bash", "-c", text], env=self.environment, cwd=self.clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=330, check=False,
        )  # fmt: skip
        story = f"{command.page}: {text}\n{done.stdout}"
        assert done.returncode == EXIT_STATUS.get(command.text, 0), story
        if command.text not in INSTEAD:
            for other in (one for one in ALL if one.text == command.text):
                assert columns(other.shown) in ([], columns(done.stdout)), f"{story}\n{other.page} shows\n{other.shown}"
            if command.page in (TUTORIAL, PLUGIN) and command.text not in LINES_MAY_DIFFER:
                assert set(shapes(command.shown)) <= set(shapes(done.stdout)), f"{story}\nthe page shows\n{command.shown}"
        return done.stdout

    @contextlib.contextmanager
    def keeps_running(self, command: Command) -> Iterator[None]:
        text = self.put(command.text)
        with subprocess.Popen(
            ["bash", "-c", f"exec {text}"], env=self.environment, cwd=self.clone, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                assert ENDLESS[command.text] in process.stdout.readline(), text
                yield
            finally:
                process.terminate()

    def put(self, text: str) -> str:
        for word, meant in self.words.items():
            if re.search(word, text):
                text = re.sub(word, meant if isinstance(meant, str) else meant(), text)
        return text


def columns(shown: str) -> list[str]:
    """Of a table of kubectl's."""
    head = shown.partition("\n")[0]
    return head.split() if re.fullmatch(r"[A-Z][A-Z -]+", head) else []


def shapes(shown: str) -> list[str]:
    """Lines without what differs each time: names that are drawn, times, ages, figures, and the evidence of deaths."""
    text = re.sub(r"-\d+-[a-z0-9]{8}(-[a-z0-9]{8})?\b", "-N-X", shown)
    text = re.sub(r'"evidence":"(?:[^"\\]|\\.)*"', '"evidence":"..."', text)
    text = re.sub(r"\b(\d+[dhms])+\b", "AGE", text)
    text = re.sub(r" on \S+$", " on NODE", text, flags=re.MULTILINE)
    text = re.sub(r"\.(team|test-[0-9a-f]{8})\.svc|-n (team|test-[0-9a-f]{8})\b", "OF THE NAMESPACE", text)
    lines = (" ".join(re.sub(r"\d+", "N", line).split()) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("| ")]


def reader(installation: Installation, namespace: str, folder: Path) -> Reader:
    cluster = installation.cluster
    clone, home = folder / "clone", folder / "home"
    home.mkdir()
    for part in ("charts", "crds", "examples"):
        shutil.copytree(page_blocks.ROOT / part, clone / part)
    environment = kubectl_plugin.environment(cluster, home)
    own = home / "kubeconfig"
    own.write_text(cluster.kubectl("config", "view", "--raw", "--flatten"))
    cluster.kubectl("--kubeconfig", str(own), "config", "set-context", "--current", f"--namespace={namespace}")
    return Reader(environment | {"KUBECONFIG": str(own)}, clone, {})


def test_the_tutorial_leads_where_it_says(installation: Installation, space: Any, tmp_path: Path) -> None:
    def a_pod() -> str:
        (*_, name) = space.kubectl("get", "pods", "-l", "enginehouse.dev/engine=smollm2", "-o", "name").split()
        return str(name)

    walker = reader(installation, space.namespace, tmp_path)
    repository, _, tag = installation.operator_image.rpartition(":")
    walker.words = {
        "REGISTRY/enginehouse-operator": f"{repository} --set-string image.tag={tag}",
        "REGISTRY/enginehouse-engine:0.1.0": installation.engine_image,
        r"\bPOD\b": a_pod,
        r"\b8080\b": str(unused_port()),
    }
    folder = model.ensure(CachePaths(cache_root())).parent
    volume = walker.clone / "examples" / "smollm2-volume.yaml"
    volume.write_text(re.sub(r"(?m)^(\s+path:).*$", rf"\1 {folder}", volume.read_text()))  # as step 4 says
    installation.cluster.helm("uninstall", "enginehouse", "--namespace", SYSTEM_NAMESPACE, "--wait", "--timeout", "120s")
    try:
        with contextlib.ExitStack() as running:
            for command in ALL:
                if command.page != TUTORIAL or command.text in NOT_RUN:
                    continue
                if command.text in ENDLESS:
                    running.enter_context(walker.keeps_running(command))
                    continue
                said = walker.types(command)
                if command.text.startswith("curl"):
                    assert "Paris" in said
        space.eventually("all of it is gone", lambda: not space.items("ie,pods"))
    finally:
        installation.cluster.kubectl("delete", "pv", "smollm2", "--ignore-not-found", "--wait=false")
        install(installation.cluster, registry=os.environ.get("ENGINEHOUSE_TEST_REGISTRY"))


@pytest.fixture(scope="module")
def at_home(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A namespace with the engines that pages speak of: `chat` serves, `killed` was, the others have no replica."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"

    def kubectl(*arguments: str, stdin: str | None = None) -> str:
        return installation.kubectl(*arguments, namespace=namespace, stdin=stdin, timeout_seconds=200)

    def wait(what: str, name: str) -> None:
        kubectl("wait", f"--for={what}", f"ie/{name}", "--timeout=180s")

    installation.cluster.kubectl("create", "-f", "-", stdin=yaml.safe_dump(restricted_namespace.manifest(namespace)))
    found = reader(installation, namespace, tmp_path_factory.mktemp("reader"))
    engine_yaml = found.clone / "engine.yaml"
    engine_yaml.write_text(yaml.safe_dump(simulated("smollm2", replicas=0)))
    engines = [
        simulated("chat", replicas=2, parallelism={"data": 2, "workersPerMember": 1}),
        simulated("killed", restart={"maxRestarts": 0}),
        *(simulated(name, replicas=0) for name in ("parallel", "ray")),
    ]
    kubectl("apply", "-f", str(engine_yaml))
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(engines))
    wait("condition=Ready", "killed")
    pod = kubectl("get", "pods", "-l", "enginehouse.dev/engine=killed", "-o", "name").strip()
    for told in ("jsonpath={.status.restarts}=1", "condition=Stalled"):
        wait("condition=Ready", "killed")
        installation.kill_engine_cores(pod, namespace=namespace)
        wait(told, "killed")
    wait("condition=Ready", "chat")

    def of_chat(kind: str, index: int) -> str:
        names = kubectl("get", kind, "-l", "enginehouse.dev/engine=chat", "-o", "jsonpath={.items[*].metadata.name}").split()
        return next(name for name in names if name.startswith(f"chat-{index}-"))

    found.words = {
        r"\bNAMESPACE\b(?!:)|\bteam\b": namespace,
        r"\bNAME\b(?!:)": "chat",
        r"\bPOD\b": lambda: of_chat("pod", 1),
        r"\bREPLICA\b": lambda: of_chat("ier", 1),
        r"\bchat-0-[a-z0-9]{8}\b": lambda: of_chat("ier", 0),
    }
    yield found
    installation.cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.mark.parametrize("page", OTHERS)
def test_the_commands_of_a_page_do_what_it_says(page: str, at_home: Reader) -> None:
    for command in OTHERS[page]:
        at_home.types(command, dry=True)


def test_what_is_listed_here_is_on_a_page() -> None:
    listed = NOT_RUN.keys() | INSTEAD.keys() | EXIT_STATUS.keys() | ENDLESS.keys() | LINES_MAY_DIFFER.keys()
    assert listed <= {command.text for command in ALL}


def test_what_a_page_shows_is_compared_without_what_differs_each_time() -> None:
    shown = "NAME   READY   AGE\nchat-0-lrml6fzg   True   1m3s\n  | last words\n"
    assert columns(shown) == ["NAME", "READY", "AGE"]
    assert shapes(shown) == shapes(shown.replace("lrml6fzg", "x7k2m4qa").replace("1m3s", "4s").replace("words", "lines"))
    assert shapes(shown) != shapes(shown.replace("True", "False"))
