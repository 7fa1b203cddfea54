"""The plugin's shell around kubectl: a stand-in on the PATH answers, fails, or is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from memory_stage import PODS, REPLICAS, Stage

from enginehouse_operator.kubectl.__main__ import main

OPERATOR = Path(__file__).parents[3] / "operator"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH; ``kubectl`` in it prints the file that is named after the kind asked for, and remembers."""
    script = tmp_path / "kubectl"
    lines = [
        "#!/bin/sh",
        f'printf "%s\\n" "$*" >> {tmp_path}/called',
        f'test -f "{tmp_path}/$2.fails" && {{ read -r words < "{tmp_path}/$2.fails"; echo "$words" >&2; exit 1; }}',
        f'test -f "{tmp_path}/$2" && while read -r line; do printf "%s\\n" "$line"; done < "{tmp_path}/$2"',
        "exit 0",
    ]
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
async def starting(stand_in: Path) -> Path:
    """It holds an engine that starts."""
    stage = Stage()
    await stage.settle()
    kinds = {REPLICAS: "EngineReplica", PODS: "Pod"}
    parts = [raw | {"kind": kind} for plural, kind in kinds.items() for raw in stage.api.of(plural)]
    (stand_in / "inferenceengines.enginehouse.dev").write_text(json.dumps(stage.api.objects["inferenceengines", "e"]) + "\n")
    (stand_in / "enginereplicas.enginehouse.dev,pods").write_text(json.dumps({"kind": "List", "items": parts}) + "\n")
    return stand_in


def test_whoever_may_not_read_events_gets_an_answer_without_them(starting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (starting / "events.fails").write_text('Error from server (Forbidden): events is forbidden: User "u" cannot list\n')
    assert main(["why", "e"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("e is not Ready.")
    assert said.err.startswith("without Events: Error from server (Forbidden)")


def test_flags_of_the_cluster_go_with_every_call(starting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "e", "-n", "team", "--kubeconfig=/k"]) == 0
    assert "engine/e" in capsys.readouterr().out
    called = (starting / "called").read_text().splitlines()
    assert len(called) == 2
    assert all(line.endswith("--namespace=team --kubeconfig=/k") for line in called)


@pytest.mark.parametrize("verb", ["status", "why", "drain", "logs"])
def test_what_kubectl_complains_of_is_passed_on_in_its_words(verb: str, stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("inferenceengines.enginehouse.dev", "enginereplicas.enginehouse.dev"):
        (stand_in / f"{kind}.fails").write_text("error: You must be logged in to the server (Unauthorized)\n")
    assert main([verb, "e"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: You must be logged in to the server (Unauthorized)\n")


def test_without_kubectl_it_says_so(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stand_in / "kubectl").unlink()
    assert main(["status"]) == 2
    assert "kubectl is not on the PATH" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_traceback(starting: Path) -> None:
    command = [sys.executable, "-m", "enginehouse_operator.kubectl", "status"]
    environment = {"PATH": str(starting), "PYTHONPATH": str(OPERATOR)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as plugin:
        assert plugin.stdout is not None
        assert plugin.stderr is not None
        plugin.stdout.close()
        assert plugin.stderr.read() == ""
