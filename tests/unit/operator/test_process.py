"""The operator as a process that does not lead yet."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 60
NOWHERE = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "u", "user": {}}],
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_operator_that_waits_ends_in_order_when_asked_to(tmp_path: Path, number: signal.Signals) -> None:
    """As the first process of its container it would not even hear a signal that it has no handler for."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(NOWHERE))
    flags = ["--engine-image=e", "--monitor-image=m", "--lease-namespace=n", "--health-port=0", "--metrics-port=0"]
    operator = subprocess.Popen(
        [sys.executable, "-m", "enginehouse_operator", *flags],
        env={**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT / "operator")},
        stderr=subprocess.PIPE,
    )
    assert operator.stderr is not None
    try:
        log, until = b"", time.monotonic() + DEADLINE_SECONDS
        while b"the API server:" not in log:
            assert select.select([operator.stderr], [], [], until - time.monotonic())[0], log
            read = os.read(operator.stderr.fileno(), 65536)
            assert read, log
            log += read
        operator.send_signal(number)
        rest = operator.communicate(timeout=DEADLINE_SECONDS)[1]
    finally:
        operator.kill()
        operator.wait()
    assert operator.returncode == 0, log + rest
    assert b"Traceback" not in rest


def run_without_a_cluster(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """An operator that finds no API server, to its end; ``folder`` may hold the kubeconfig of one that does not answer."""
    flags = ["--engine-image=e", "--monitor-image=m", "--lease-namespace=n", *more]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KUBERNETES_")}
    return subprocess.run(
        [sys.executable, "-m", "enginehouse_operator", *flags],
        env={**environment, "KUBECONFIG": str(folder / "kubeconfig"), "PYTHONPATH": str(ROOT / "operator")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


def test_in_json_each_record_is_an_object_on_a_line_of_its_own(tmp_path: Path) -> None:
    ended = run_without_a_cluster(tmp_path, "--log-format=json")
    *_, record = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (record["level"], record["logger"]) == ("error", "enginehouse.operator")
    assert "KUBECONFIG" in record["message"]


def test_also_what_ends_an_operator_is_an_object(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(json.dumps(NOWHERE))
    with socket.create_server(("", 0)) as taken:
        ended = run_without_a_cluster(tmp_path, "--log-format=json", f"--health-port={taken.getsockname()[1]}")
    *_, record = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (ended.returncode, record["level"], record["logger"]) == (1, "critical", "enginehouse.operator")
    assert "address already in use" in record["error"]


def test_without_a_cluster_one_line_says_what_to_do(tmp_path: Path) -> None:
    ended = run_without_a_cluster(tmp_path)
    assert ended.returncode == 1
    assert "KUBECONFIG" in ended.stderr
    assert "Traceback" not in ended.stderr
