"""The plugin's shell around kubectl: a stand-in on the PATH answers, fails, or is not there."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from memory_stage import PODS, REPLICAS, Stage

from enginehouse_operator.kubectl.__main__ import main

OPERATOR = Path(__file__).parents[3] / "operator"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH; ``kubectl`` in it prints the file that is named after the kind asked for, and remembers.
    While there is a pipe ``login`` it asks for a code first."""
    script = tmp_path / "kubectl"
    lines = [
        "#!/bin/sh",
        f'printf "%s\\n" "$*" >> {tmp_path}/called',
        f'test -p "{tmp_path}/login" && {{ echo "enter the code ABCD" >&2; read -r code < "{tmp_path}/login"; }}',
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


def test_a_command_to_be_copied_goes_to_the_cluster_that_was_asked(starting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not to the present context's, which may have an engine of that name as well."""
    assert main(["why", "e", "-n", "n", "--context", "prod of ours"]) == 1
    assert "$ kubectl enginehouse status e -n n '--context=prod of ours'\n" in capsys.readouterr().out
    listed = json.loads((starting / "enginereplicas.enginehouse.dev,pods").read_text())["items"]
    (pod,) = (raw for raw in listed if raw["kind"] == "Pod")
    (starting / "pods").write_text(json.dumps(pod) + "\n")
    assert main(["drain", pod["metadata"]["name"], "--kubeconfig=/k"]) == 0
    assert "$ kubectl enginehouse status e -n n --kubeconfig=/k\n" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["status", "why", "drain", "logs"])
def test_what_kubectl_complains_of_is_passed_on_in_its_words(verb: str, stand_in: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("inferenceengines.enginehouse.dev", "enginereplicas.enginehouse.dev"):
        (stand_in / f"{kind}.fails").write_text("error: You must be logged in to the server (Unauthorized)\n")
    assert main([verb, "e"]) == 2
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "error: You must be logged in to the server (Unauthorized)\n")


def test_a_kubectl_that_is_killed_is_told(stand_in: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (stand_in / "kubectl").write_text("#!/bin/sh\nkill -9 $$\n")
    assert main(["status"]) == 2
    assert "exited -9" in capfd.readouterr().err


def test_without_kubectl_it_says_so(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stand_in / "kubectl").unlink()
    assert main(["status"]) == 2
    assert "kubectl is not on the PATH" in capsys.readouterr().err


def started(folder: Path, *arguments: str, stdout: int) -> subprocess.Popen[str]:
    """A process of its own, as kubectl starts it."""
    command = [sys.executable, "-m", "enginehouse_operator.kubectl", *arguments]
    environment = {"PATH": str(folder), "PYTHONPATH": str(OPERATOR)}
    return subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)


def on_a_terminal(folder: Path, *arguments: str, columns: int) -> str:
    """What a terminal of that width is sent."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, columns))
    said = b""
    with started(folder, *arguments, stdout=its), os.fdopen(ours, "rb", buffering=0) as screen:
        os.close(its)
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
            while part := screen.read(4096):
                said += part
    return said.decode()


@pytest.mark.parametrize("arguments", [("status",), ("why", "e")], ids=" ".join)
def test_there_are_colours_on_a_terminal_and_none_in_a_pipe(starting: Path, arguments: tuple[str, ...]) -> None:
    assert "\x1b[33mStarting\x1b[0m" in on_a_terminal(starting, *arguments, columns=100)
    piped, _ = started(starting, *arguments, stdout=subprocess.PIPE).communicate()
    assert "Starting" in piped
    assert "\x1b" not in piped


def test_an_answer_is_as_wide_as_the_terminal(starting: Path) -> None:
    narrow, wide = (on_a_terminal(starting, "why", "e", columns=columns).splitlines() for columns in (40, 200))
    assert len(narrow) > len(wide)
    assert all(len(line) <= 40 for line in narrow if "\x1b" not in line and "$ kubectl" not in line)


def test_a_reader_that_has_seen_enough_is_no_traceback(starting: Path) -> None:
    with started(starting, "status", stdout=subprocess.PIPE) as plugin:
        assert plugin.stdout is not None
        assert plugin.stderr is not None
        plugin.stdout.close()
        assert plugin.stderr.read() == ""


def test_a_login_asks_its_user_while_it_waits(starting: Path) -> None:
    """As plugins for credentials do with a code for a device."""
    os.mkfifo(starting / "login")
    with started(starting, "status", stdout=subprocess.PIPE) as plugin:
        assert plugin.stdout is not None
        assert plugin.stderr is not None
        assert plugin.stderr.readline() == "enter the code ABCD\n"
        with (starting / "login").open("w") as answer:
            (starting / "login").unlink()
            answer.write("\n")
        assert "engine/e" in plugin.stdout.read()
        assert plugin.stderr.read() == ""
