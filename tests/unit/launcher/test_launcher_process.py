"""The real launcher with stand-in children: exit codes, orphans, drain, deadlines, and a monitor that comes and goes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from enginehouse_engine import options
from enginehouse_engine.launcher import children, main
from enginehouse_engine.launcher.main import make_run_directory
from fake_monitor import FakeMonitor, is_state
from launched_engine import DEADLINE_SECONDS
from logged_process import watched

SERVES = {"api-server 0": "bound,ready=0", "engine-core 0": "addresses"}


def test_it_serves_says_so_and_ends_in_order(launched: Any) -> None:
    one = launched(SERVES)
    url = urllib.parse.urlparse(one.ready().split(",")[0].removeprefix("ready: "))
    socket.create_connection((url.hostname, url.port)).close()
    one.process.terminate()
    assert one.wait() == 0
    assert re.findall(r"stand-in pid \d+ got (\w+)", one.text()) == ["drain", "stop", "stop"]
    assert list(one.temporary.iterdir()) == [], "sockets and configuration are removed"


def test_a_long_path_for_temporary_files_does_not_break_the_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = make_run_directory()
    assert len(bytes(made / "launcher.sock")) < 107 - 40
    assert made.stat().st_mode & 0o777 == 0o700
    made.rmdir()


def test_addresses_reach_the_core_as_the_protocol_says(launched: Any) -> None:
    behaviours = {"api-server 0": "bound", "api-server 1": "bound,ready=0", "engine-core 0": "addresses"}
    one = launched(behaviours, "--api-servers", "2", "--replica-uid", "u")
    assert json.loads(one.until(r"was given (\{.*\})")[1]) == {
        "type": "addresses",
        "frontEnds": [
            {"index": 0, "incarnation": 1, "endpoint": "ipc://front-0-1"},
            {"index": 1, "incarnation": 1, "endpoint": "ipc://front-1-1"},
        ],
        "replicaUid": "u",
    }


@pytest.mark.parametrize("victim", ["api-server 0", "engine-core 0"])
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("exit=0", 1),
        ("exit=3", 1),
        ("raise", 1),
        ("kill=9", 137),
        ("kill=11", 139),
        ("failed=InvalidConfig,exit=78", 78),
        ("exit=78", 78),
    ],
)
def test_a_death_that_is_not_made_good_ends_the_engine_and_is_never_zero(launched: Any, victim: str, end: str, code: int) -> None:
    one = launched({**SERVES, victim: f"{SERVES[victim]},wait,{end}", f"{victim} again": "exit=9"})
    one.ready()
    name = "API server 0" if victim == "api-server 0" else "engine core of rank 0"
    one.until(f"pid {one.pid(name)} does wait")
    os.kill(one.pid(name), signal.SIGUSR1)
    assert one.wait() == code
    cause = "InvalidConfig" if code == 78 else "Signal" if code > 128 else "ExitCode"
    assert f"launcher: the engine ends: {cause}: {name}" in one.text()


def test_an_api_server_that_dies_in_the_moment_in_which_all_are_ready_comes_back(launched: Any) -> None:
    """The launcher hears of both in one turn, as when it was held up: ready is what the engine was, whoever lives now."""
    one = launched({**SERVES, "api-server 0": "bound,wait,ready=0,exit=3", "api-server 0 again": "bound,ready=0"})
    server = one.pid("API server 0")
    one.until(f"pid {server} does wait")
    one.until("was given")
    with watched(server) as gone:
        one.process.send_signal(signal.SIGSTOP)
        os.kill(server, signal.SIGUSR1)
        assert gone()
        one.process.send_signal(signal.SIGCONT)
    assert one.output().endswith("context length 128\n")
    one.until(f"pid {one.pid('API server 0', incarnation=2)} does ready=0")
    one.process.terminate()
    assert one.wait() == 0


def test_an_engine_whose_output_nobody_reads_serves_all_the_same(launched: Any) -> None:
    one = launched({**SERVES, "api-server 0": "bound,wait,ready=0"})
    one.until(f"pid {one.pid('API server 0')} does wait")
    one.process.stdout.close()
    one.process.stdout = None
    os.kill(one.pid("API server 0"), signal.SIGUSR1)
    one.until("ready after")
    one.until("was given")
    one.process.terminate()
    assert one.wait() == 0


def test_without_room_for_a_folder_it_says_so_and_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/enginehouse-x")

    monkeypatch.setattr(main, "make_run_directory", full)
    for name in ("become_reaper", "raise_descriptor_limit"):
        monkeypatch.setattr(children, name, lambda: None)  # this process is the tests'
    assert main.launch(options.parse(["--executor", "Simulated", "--port", "0"])) == 1
    assert "the engine ends: Exception: there is no folder for the engine's files: [Errno 28]" in caplog.text


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ((), "the engine's configuration cannot be written"),
        (("--model", "hf://org/model"), "the model's download cannot be started"),
    ],
)
def test_a_folder_that_takes_no_file_any_more_is_the_cause_of_an_end(
    launched: Any, tmp_path: Path, flags: tuple[str, ...], what: str
) -> None:
    """As on a disk that is full."""
    monitor = FakeMonitor(tmp_path / "monitor")
    one = launched(SERVES, "--monitor-socket", str(tmp_path / "monitor"), *flags)
    monitor.accept()
    monitor.hear_until(is_state("Starting"))
    (folder,) = one.temporary.iterdir()
    shutil.rmtree(folder)
    monitor.say(type="stored")
    monitor.hear_until(is_state("Failed"))
    assert one.wait() == 1
    assert f"the engine ends: Exception: {what}: " in one.text()
    monitor.close()


@pytest.mark.parametrize("phase", ["unregistered", "stage=import,unregistered", "bound,deaf"])
def test_a_death_while_starting_takes_the_others_with_it(launched: Any, phase: str) -> None:
    one = launched({"api-server 0": phase.replace(",unregistered", ",deaf"), "engine-core 0": "wait,exit=5"})
    one.until(f"does {phase.split(',')[-1].replace('stage=import', 'deaf').replace('unregistered', '(unregistered|deaf)')}")
    server, core = one.pid("API server 0"), one.pid("engine core of rank 0")
    with watched(server) as gone:
        one.until(f"pid {core} does wait")
        os.kill(core, signal.SIGUSR1)
        assert one.wait() == 1
        assert gone()


@pytest.mark.parametrize("phase", ["stage=load,deaf", "addresses,wait", "wait,stage=import"])
def test_the_launchers_death_takes_its_children_with_it_in_each_phase(launched: Any, phase: str) -> None:
    """Loading, serving, and not registered yet: such a process finds nobody to register with."""
    one = launched({"api-server 0": "bound,ready=0", "engine-core 0": phase})
    server, core = one.pid("API server 0"), one.pid("engine core of rank 0")
    one.until(f"pid {core} does {'wait' if 'wait' in phase else 'deaf'}")
    one.until(f"pid {server} does ready=0")
    with watched(server) as server_gone, watched(core) as core_gone:
        one.process.kill()
        one.wait()
        assert server_gone()
        if phase.startswith("wait"):
            os.kill(core, signal.SIGUSR1)
        assert core_gone()


def test_orphans_are_reaped_and_leftovers_do_not_outlive_the_launcher(launched: Any) -> None:
    behaviours = {"api-server 0": "bound,ready=0,wait", "engine-core 0": "orphan=0,orphan=600,fork=600,addresses"}
    one = launched({**behaviours, "engine-core 0 again": "exit=1"})
    one.ready()
    core = one.pid("engine core of rank 0")
    one.until("was given")
    children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children")
    with watched(one.process.pid):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(pids := children.read_text().split()) != 3:  # API server, core and the orphan that sleeps on: the other is reaped
            assert time.monotonic() < deadline, pids
            time.sleep(0.01)
    (orphan,) = {int(pid) for pid in pids} - {core, one.pid("API server 0")}
    forked = int(Path(f"/proc/{core}/task/{core}/children").read_text())
    with watched(orphan) as orphan_gone, watched(forked) as forked_gone:
        os.kill(core, signal.SIGKILL)
        assert forked_gone(), "what a dead process left in its session is killed with it"
        assert one.process.poll() is None, "and not only at the end: the API server still has its time to stop"
        assert one.wait() == 137
        assert orphan_gone()


def test_leftovers_do_not_outlive_a_launcher_that_fails_itself(launched: Any) -> None:
    one = launched({"api-server 0": "bound,ready=0", "engine-core 0": "orphan=600,addresses", "engine-core 0 again": "broken"})
    one.ready()
    core = one.pid("engine core of rank 0")
    one.until("was given")
    others = {core, one.pid("API server 0")}
    (orphan,) = set(map(int, Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split())) - others
    with watched(orphan) as orphan_gone:
        os.kill(core, signal.SIGKILL)
        assert one.wait() == 1
        assert orphan_gone()
    assert "this launcher has a mistake" in one.text()


def test_a_start_that_takes_too_long_names_the_missing_one_and_its_stage(launched: Any) -> None:
    one = launched({"api-server 0": "bound,stage=handshake", "engine-core 0": "stage=load,deaf"}, "--startup-timeout-seconds", "2")
    assert one.wait() == 1
    server, core = one.pid("API server 0"), one.pid("engine core of rank 0")
    missing = f"API server 0 (pid {server}, stage handshake); engine core of rank 0 (pid {core}, stage load)"
    assert f"StartupTimeout: not ready after 2 s, waiting for: {missing}" in one.text()


@contextlib.contextmanager
def children_inherit(handler: Any) -> Iterator[None]:
    """What children take a hang-up for, however these tests were started: nohup has it ignored."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_starting_ends_it_at_once_with_zero(launched: Any, number: int) -> None:
    with children_inherit(signal.SIG_DFL):
        one = launched({"api-server 0": "bound", "engine-core 0": "stage=load,deaf"})
    one.until("does deaf")
    one.process.send_signal(number)
    assert one.wait() == 0


def test_a_hang_up_that_somebody_has_ignored_stays_ignored(launched: Any) -> None:
    with children_inherit(signal.SIG_IGN):
        one = launched(SERVES)
    one.ready()
    one.process.send_signal(signal.SIGHUP)
    one.process.terminate()
    assert one.wait() == 0
    assert "SIGHUP" not in one.text()


def test_processes_may_open_as_many_descriptors_as_the_machine_lets_them(launched: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Enough for this process, whatever other tests have open, and too little for an engine's clients.
    few = max(map(int, os.listdir("/proc/self/fd"))) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        one = launched(SERVES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    one.ready()
    limits = resource.prlimit(one.pid("API server 0"), resource.RLIMIT_NOFILE)
    assert limits == (min(hard, children.MOST_DESCRIPTORS), hard)


def test_a_second_signal_cuts_the_drain(launched: Any) -> None:
    one = launched({**SERVES, "api-server 0": "bound,ready=0,wait"})
    one.ready()
    one.process.terminate()
    one.until("launcher: draining")
    one.process.terminate()
    one.until("launcher: stopping")
    one.until("does wait")
    os.kill(one.pid("API server 0"), signal.SIGUSR1)
    assert one.wait() == 0


def test_a_process_that_dies_while_draining_is_a_failure(launched: Any) -> None:
    one = launched({**SERVES, "api-server 0": "bound,ready=0,wait,kill=11"})
    one.ready()
    one.process.terminate()
    one.until("launcher: draining")
    one.until("does wait")
    os.kill(one.pid("API server 0"), signal.SIGUSR1)
    assert one.wait() == 139


def test_a_port_in_use_is_said_and_nothing_is_started(launched: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one = launched(SERVES, "--port", str(taken.getsockname()[1]))
        assert one.wait() == 1
    assert "is in use by another process" in one.text()
    assert "started" not in one.text()


def test_a_host_that_is_none_cannot_work(launched: Any) -> None:
    one = launched(SERVES, "--host", "203.0.113.9")
    assert one.wait() == 78


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub with one file, hf://org/model/tiny.gguf; anything called slow is never answered. What it was asked."""
    asked: list[str] = []
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            if "slow" in self.path:
                end.wait(DEADLINE_SECONDS)
            known = self.path == "/org/model/resolve/main/tiny.gguf"
            self.send_response(200 if known else 404)
            headers = {"ETag": '"1"', "X-Repo-Commit": "0" * 40} if known else {"X-Error-Code": "EntryNotFound"}
            for name, value in {**headers, "Content-Length": "8"}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"GGUF1234")

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    yield asked
    end.set()
    server.shutdown()
    server.server_close()


def test_a_downloaded_model_is_found_and_its_path_is_what_the_processes_are_told(launched: Any, hub: Any, tmp_path: Path) -> None:
    flags = ["--model", "hf://org/model/tiny.gguf", "--model-cache-dir", str(tmp_path / "models")]
    one = launched({**SERVES, "engine-core 0": "config,addresses"}, *flags)
    one.ready()
    path = Path(one.until(r"reads (\S+)")[1])
    assert (path.name, path.read_bytes()) == ("tiny.gguf", b"GGUF1234")
    assert tmp_path / "models" in path.parents


def test_a_model_that_the_hub_does_not_have_cannot_work(launched: Any, hub: Any) -> None:
    one = launched(SERVES, "--model", "hf://org/model/other.gguf")
    assert one.wait() == 78
    assert "the engine ends: ModelNotFound: hf://org/model/other.gguf" in one.text()


# For one file the hub library itself tries for 25 s.
@pytest.mark.parametrize("uri", ["hf://org/model", pytest.param("hf://org/model/tiny.gguf", marks=pytest.mark.slow)])
def test_a_hub_that_is_not_there_may_be_tried_again(
    launched: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    one = launched(SERVES, "--model", uri)
    assert one.wait() == 1
    assert f"the engine ends: Exception: {uri}: the hub cannot be reached" in one.text()


def test_a_download_does_not_outlive_the_launcher(launched: Any, hub: Any) -> None:
    one = launched(SERVES, "--model", "hf://org/model/slow.gguf")
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not hub:
        assert time.monotonic() < deadline, one.text()
        time.sleep(0.01)
    (child,) = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
    with watched(int(child)) as gone:
        one.process.kill()
        assert gone()


@pytest.mark.parametrize("end", ["signal", "deadline"])
def test_a_download_that_hangs_does_not_hold_the_launcher(launched: Any, hub: Any, end: str) -> None:
    seconds = "600" if end == "signal" else "3"
    one = launched(SERVES, "--model", "hf://org/model/slow.gguf", "--startup-timeout-seconds", seconds)
    if end == "signal":
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not hub:
            assert time.monotonic() < deadline, one.text()
            time.sleep(0.01)
        one.process.terminate()
    assert one.wait() == (0 if end == "signal" else 1)
    assert ("waiting for: the model's download" in one.text()) is (end == "deadline")


def test_nothing_starts_before_the_monitor_says_stored(launched: Any, tmp_path: Path) -> None:
    monitor = FakeMonitor(tmp_path / "monitor")
    one = launched(SERVES, "--monitor-socket", str(tmp_path / "monitor"))
    monitor.accept()
    assert monitor.hear() == ({"type": "hello", "version": 1, "pid": one.process.pid}, 1)
    monitor.hear_until(is_state("Starting"))
    assert "started" not in one.text()
    monitor.say(type="stored")
    heard = monitor.hear_until(is_state("Serving"))
    serving = heard[-1][0]
    if not any(message.get("role") == "engine-core" for message, _ in heard):
        heard.append(monitor.hear())
    processes = {(message["role"], message["pid"]): count for message, count in heard if message["type"] == "process"}
    # Read end, pidfd and the hang-up of the lock.
    assert processes == {("api-server", one.pid("API server 0")): 3, ("engine-core", one.pid("engine core of rank 0")): 3}
    assert serving["ranks"] == [{"rank": 0, "incarnation": 1, "state": "Serving", "maxContextLength": 128, "kvBlocks": 8}]
    monitor.close()


def test_a_monitor_that_never_stores_the_row_is_named(launched: Any, tmp_path: Path) -> None:
    one = launched(SERVES, "--monitor-socket", str(tmp_path / "nobody"), "--startup-timeout-seconds", "1")
    assert one.wait() == 1
    assert f"waiting for: the monitor at {tmp_path / 'nobody'} to store this pod's row" in one.text()


def test_a_restarted_monitor_is_handed_everything_again(launched: Any, tmp_path: Path) -> None:
    path = tmp_path / "monitor"
    monitor = FakeMonitor(path)
    one = launched(SERVES, "--monitor-socket", str(path))
    monitor.accept()
    monitor.say(type="stored")
    first = monitor.hear_until(lambda message: message.get("role") == "engine-core")
    if not any(message.get("state") == "Serving" for message, _ in first):
        first += monitor.hear_until(is_state("Serving"))
    descriptors = Path(f"/proc/{one.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        monitor.close()
        monitor = FakeMonitor(path)
        monitor.accept()
        again = monitor.hear_until(is_state("Serving"))
        monitor.say(type="stored")
        assert sorted(map(str, again)) == sorted({str(item) for item in first if item[0].get("state") != "Starting"})
    assert len(list(descriptors.iterdir())) == before
    os.kill(one.pid("engine core of rank 0"), signal.SIGKILL)
    heard = [message for message, _ in monitor.hear_until(lambda message: message["type"] == "exited")]
    core = {"role": "engine-core", "rank": 0, "index": 0, "incarnation": 1, "pid": one.pid("engine core of rank 0")}
    cause = {
        "class": "Signal",
        "message": "engine core of rank 0 was killed by SIGKILL",
        "exitCode": None,
        "signal": 9,
        "planned": False,
    }
    evidence = heard[-1].pop("evidence")
    assert heard[-1] == {"type": "exited", **core, **cause}
    assert evidence.startswith(f"last lines of engine core of rank 0:\nstand-in pid {core['pid']} does addresses\n")
    monitor.close()


def test_a_death_while_the_monitor_is_away_is_told_to_the_next_one(launched: Any, tmp_path: Path) -> None:
    path = tmp_path / "monitor"
    monitor = FakeMonitor(path)
    one = launched({**SERVES, "api-server 0": "bound,ready=0,wait"}, "--monitor-socket", str(path))
    monitor.accept()
    monitor.say(type="stored")
    monitor.hear_until(is_state("Serving"))
    one.until("was given")
    monitor.close()
    os.kill(one.pid("engine core of rank 0"), signal.SIGKILL)
    one.until("engine core of rank 0 was killed")
    monitor = FakeMonitor(path)
    monitor.accept()
    told = [
        message for message, _ in monitor.hear_until(lambda message: message["type"] == "exited") if message["type"] == "exited"
    ]
    assert [(message["role"], message["signal"], message["planned"]) for message in told] == [("engine-core", 9, False)]
    monitor.close()


@pytest.mark.parametrize("message", [{"type": "drain"}, {"type": "abort", "ranks": [0]}], ids=["drain", "abort"])
def test_the_monitor_can_end_the_engine(launched: Any, tmp_path: Path, message: dict[str, Any]) -> None:
    monitor = FakeMonitor(tmp_path / "monitor")
    one = launched(SERVES, "--monitor-socket", str(tmp_path / "monitor"))
    monitor.accept()
    monitor.say(type="stored")
    monitor.hear_until(is_state("Serving"))
    one.until("was given")
    monitor.say(**message)
    heard = monitor.hear_until(is_state("Ended"))
    assert [told["planned"] for told, _ in heard if told["type"] == "exited"] == [True, True]
    assert one.wait() == 0
    assert ("got drain" in one.text()) is (message == {"type": "drain"})
    # Whoever ends on purpose says so in its pipe; the hang-ups of locks say nothing.
    said = [os.read(pipe, 10) for pipe in monitor.descriptors if "pipe:" in os.readlink(f"/proc/self/fd/{pipe}")]
    assert sorted(said) == [b""] * 2 + [b"bye\n"] * 3
    monitor.close()


def test_an_engine_whose_rank_died_in_another_pod_ends_with_that_cause_and_reports_no_failure(
    launched: Any, tmp_path: Path
) -> None:
    monitor = FakeMonitor(tmp_path / "monitor")
    one = launched(SERVES, "--monitor-socket", str(tmp_path / "monitor"))
    monitor.accept()
    monitor.say(type="stored")
    monitor.hear_until(is_state("Serving"))
    one.until("was given")
    cause = {"class": "Signal", "message": "worker 3 of rank 0 was killed by SIGSEGV", "role": "worker", "rank": 0}
    monitor.say(type="abort", ranks=[0], cause=cause | {"incarnation": 1, "pid": 77, "exitCode": None, "signal": 11})
    heard = monitor.hear_until(is_state("Failed"))
    assert [told for told, _ in heard if told["type"] == "exited" and not told["planned"]] == []
    assert one.wait() == 139
    assert "the engine ends: Signal: worker 3 of rank 0 was killed by SIGSEGV" in one.text()
    monitor.close()


def test_the_launcher_is_small_and_imports_nothing_heavy() -> None:
    code = "import sys, enginehouse_engine.__main__; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "torch",
        "zmq",
        "numpy",
        "huggingface_hub",
        "transformers",
        "tokenizers",
        "gguf",
        "starlette",
        "uvicorn",
        "asyncio",
        "ssl",
    }
    assert not heavy & set(loaded)


def test_an_idle_launcher_sleeps_and_stays_small(launched: Any) -> None:
    one = launched(SERVES)
    one.ready()

    def status(key: str) -> int:
        lines = Path(f"/proc/{one.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])

    deadline = time.monotonic() + DEADLINE_SECONDS
    while "State:\tS" not in Path(f"/proc/{one.process.pid}/status").read_text():
        assert time.monotonic() < deadline
    switches = status("voluntary_ctxt_switches")
    assert not select.select([one.process.stdout], [], [], 1.0)[0]
    assert status("voluntary_ctxt_switches") == switches
    assert status("VmRSS") < 32 * 1024
