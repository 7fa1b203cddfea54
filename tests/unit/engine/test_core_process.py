"""The engine core's process as the launcher and a front end see it: real process, real sockets, simulated model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from enginehouse_engine import config as configuration
from enginehouse_engine.executor.simulated import simulated_answer
from enginehouse_engine.protocol import (
    PROTOCOL_VERSION,
    Abort,
    FromCore,
    Hello,
    Outputs,
    Refused,
    RequestOutput,
    Sampling,
    Submit,
    ToCore,
    Welcome,
    decode_from_core,
    encode,
    pack_tokens,
)

DEADLINE_SECONDS = 30.0


class Launcher:
    """The launcher's side of one engine core: listens, starts it, answers the registration."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.config = configuration.EngineConfig(
            **{
                "replica_uid": "uid",
                "model_path": "",
                "model_uri": "",
                "served_model_name": "s",
                "executor": "Simulated",
                "memory_budget_bytes": 1 << 30,
                "startup_timeout_seconds": DEADLINE_SECONDS,
                **changes,
            }
        )
        configuration.save(self.config, folder / "engine.json")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(folder / "launcher"))
        self.listener.listen()
        self.listener.settimeout(DEADLINE_SECONDS)
        command = [sys.executable, "-m", "enginehouse_engine.core.process", "--launcher-socket", str(folder / "launcher")]
        command += ["--config", str(folder / "engine.json"), "--rank", "3", "--incarnation", "2"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(command, env=environment)
        self.control, _ = self.listener.accept()
        self.control.settimeout(DEADLINE_SECONDS)
        data, descriptors, _, _ = socket.recv_fds(self.control, 65536, 4)
        self.identity = json.loads(data)
        self.pipe, self.pidfd, *_ = descriptors
        self.say("registered")

    def say(self, type_: str, **fields: Any) -> None:
        self.control.send(json.dumps({"type": type_, **fields}).encode())

    def hear(self) -> dict[str, Any]:
        return json.loads(self.control.recv(65536) or b"null")

    def stages(self) -> list[str]:
        seen = []
        while not seen or seen[-1] != "handshake":
            message = self.hear()
            assert message["type"] == "stage", message
            seen.append(message["stage"])
        return seen

    def publish(self, *endpoints: str) -> None:
        front_ends = [{"index": index, "endpoint": endpoint} for index, endpoint in enumerate(endpoints)]
        self.say("addresses", frontEnds=front_ends, replicaUid="uid")

    def stop(self) -> int:
        self.say("stop")
        return self.process.wait(DEADLINE_SECONDS)

    def last_words(self) -> bytes:
        return os.read(self.pipe, 100)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.control.close()
        self.listener.close()
        os.close(self.pipe)
        os.close(self.pidfd)


class FrontEnd:
    """The front end's ROUTER socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path) -> None:
        self.endpoint = f"ipc://{path}"
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_SECONDS * 1000))
        self.socket.bind(self.endpoint)
        self.identity = b""

    def hear(self) -> FromCore:
        self.identity, *frames = self.socket.recv_multipart()
        return decode_from_core(frames)

    def say(self, message: ToCore) -> None:
        self.socket.send_multipart([self.identity, encode(message)])

    def greet(self, index: int = 0) -> Hello:
        hello = self.hear()
        assert isinstance(hello, Hello)
        self.say(Welcome(PROTOCOL_VERSION, index))
        return hello

    def answer(self, request_id: str) -> list[int]:
        """All tokens of one request, whatever else is said meanwhile: the core also says when it has become idle."""
        tokens: list[int] = []
        while True:
            message = self.hear()
            assert isinstance(message, Outputs)
            for row in message.outputs:
                assert row.request_id == request_id
                tokens += row.tokens
                if row.finish_reason is not None:
                    return tokens

    def figures(self) -> tuple[int, int]:
        """Running and waiting, as the next message says."""
        message = self.hear()
        assert isinstance(message, Outputs)
        assert message.stats is not None
        return message.stats.running, message.stats.waiting

    def outputs_until_idle(self) -> list[RequestOutput]:
        rows: list[RequestOutput] = []
        while True:
            message = self.hear()
            assert isinstance(message, Outputs)
            rows += message.outputs
            if message.stats is not None and message.stats.running == message.stats.waiting == 0:
                return rows


@pytest.fixture
def launcher(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path, **getattr(request, "param", {}))
    yield launcher
    launcher.close()


@pytest.fixture
def front_ends(tmp_path: Path) -> Iterator[list[FrontEnd]]:
    context = zmq.Context()
    made = [FrontEnd(context, tmp_path / f"front-{index}") for index in range(3)]
    yield made
    context.destroy(linger=0)


def greedy(name: str, prompt: list[int], count: int) -> Submit:
    return Submit(name, pack_tokens(prompt), Sampling(max_tokens=count, temperature=0, ignore_eos=True))


def test_a_core_registers_loads_greets_answers_and_leaves_with_a_bye(launcher: Launcher, front_ends: list[FrontEnd]) -> None:
    pid = launcher.process.pid
    assert (
        launcher.identity | {"type": "register", "role": "engine-core", "rank": 3, "incarnation": 2, "pid": pid}
        == launcher.identity
    )
    assert launcher.stages() == ["import", "load", "profile", "handshake"]
    front_end = front_ends[0]
    launcher.publish(front_end.endpoint)
    hello = front_end.greet()
    assert front_end.identity == b"3-2"
    assert (hello.version, hello.replica_uid, hello.rank, hello.incarnation) == (PROTOCOL_VERSION, "uid", 3, 2)
    assert hello.config_hash == launcher.config.hash()
    assert hello.max_context_length == 8192
    front_end.say(greedy("r", [1, 2, 3], 20))
    rows = front_end.outputs_until_idle()
    assert [row.tokens[0] for row in rows] == simulated_answer([1, 2, 3], 20)
    assert rows[-1].finish_reason == "length"
    assert launcher.stop() == 0
    assert launcher.last_words() == b"bye\n"
    assert launcher.last_words() == b""


def test_every_front_end_gets_its_own_answers_and_a_replaced_one_is_greeted_anew(
    launcher: Launcher, front_ends: list[FrontEnd]
) -> None:
    launcher.stages()
    left, right, successor = front_ends
    launcher.publish(left.endpoint, right.endpoint)
    left.greet()
    right.greet(1)
    left.say(greedy("same", [1], 5))
    right.say(greedy("same", [2], 5))
    assert left.answer("same") == simulated_answer([1], 5)
    assert right.answer("same") == simulated_answer([2], 5)
    right.say(greedy("endless", [2], 8000))
    launcher.publish(left.endpoint, successor.endpoint)
    successor.greet(1)
    left.say(greedy("after", [3], 5))
    assert left.answer("after") == simulated_answer([3], 5)


def test_every_front_end_hears_of_work_before_the_step_and_when_it_is_over(launcher: Launcher, front_ends: list[FrontEnd]) -> None:
    launcher.stages()
    left, right, late = front_ends
    launcher.publish(left.endpoint, right.endpoint)
    left.greet()
    right.greet(1)
    left.say(greedy("endless", [1], 8000))
    assert right.figures() == (0, 1)
    assert right.figures() == (1, 0)
    launcher.publish(left.endpoint, right.endpoint, late.endpoint)
    stats = late.greet(2).stats
    assert stats is not None
    assert (stats.running, stats.steps > 0) == (1, True)
    left.say(Abort(("endless",)))
    assert all(row.request_id == "" for row in right.outputs_until_idle())
    assert late.outputs_until_idle() == []


@pytest.mark.parametrize("launcher", [{"startup_timeout_seconds": 0.3}], indirect=True)
def test_a_front_end_that_came_late_and_is_silent_takes_no_core_with_it(launcher: Launcher, front_ends: list[FrontEnd]) -> None:
    launcher.stages()
    left, silent, _ = front_ends
    launcher.publish(left.endpoint)
    left.greet()
    left.say(greedy("first", [1], 2))
    assert left.answer("first") == simulated_answer([1], 2)
    launcher.publish(left.endpoint, silent.endpoint)
    assert isinstance(silent.hear(), Hello)
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.process.wait(0.6)
    left.say(greedy("second", [2], 2))
    assert left.answer("second") == simulated_answer([2], 2)


def test_an_abort_ends_the_work_and_refusals_come_back_at_once(launcher: Launcher, front_ends: list[FrontEnd]) -> None:
    launcher.stages()
    front_end = front_ends[0]
    launcher.publish(front_end.endpoint)
    front_end.greet()
    front_end.say(greedy("too long", [1], 8192))
    message = front_end.hear()
    assert isinstance(message, Outputs)
    assert (message.outputs[0].finish_reason, message.outputs[0].context_limit) == ("refused", 8192)
    front_end.say(greedy("endless", [1], 8191))
    assert isinstance(front_end.hear(), Outputs)
    front_end.say(Abort(("endless",)))
    rows = front_end.outputs_until_idle()
    assert all(row.finish_reason is None for row in rows)


@pytest.mark.parametrize(
    ("launcher", "cause", "words", "exit_code"),
    [
        ({"memory_budget_bytes": 33 << 20, "min_context_length": 64}, "ContextTooSmall", "at least 64 tokens", 78),
        (
            {"executor": "InProcess", "parallel": configuration.ParallelConfig(tensor=2)},
            "InvalidConfig",
            "use executor Multiprocess",
            78,
        ),
    ],
    indirect=["launcher"],
)
def test_what_cannot_work_is_said_before_a_hopeless_exit(launcher: Launcher, cause: str, words: str, exit_code: int) -> None:
    message = launcher.hear()
    while message["type"] == "stage":
        message = launcher.hear()
    assert message["type"] == "failed"
    assert message["class"] == cause
    assert words in message["message"]
    assert launcher.process.wait(DEADLINE_SECONDS) == exit_code
    assert launcher.last_words() == b"", "no bye before a failure"


def test_an_exception_is_told_with_its_traceback(launcher: Launcher, front_ends: list[FrontEnd]) -> None:
    launcher.stages()
    front_end = front_ends[0]
    launcher.publish(front_end.endpoint)
    front_end.greet()
    front_end.socket.send_multipart([front_end.identity, b"one", b"two"])
    message = launcher.hear()
    assert message["class"] == "Exception"
    assert "exactly one frame, found 2" in message["message"]
    assert "Traceback" in message["message"]
    assert launcher.process.wait(DEADLINE_SECONDS) == 1


def test_a_front_end_that_refuses_ends_the_core_with_its_reason(launcher: Launcher, front_ends: list[FrontEnd]) -> None:
    launcher.stages()
    launcher.publish(front_ends[0].endpoint)
    assert isinstance(front_ends[0].hear(), Hello)
    front_ends[0].say(Refused("config hash differs"))
    assert "config hash differs" in launcher.hear()["message"]
    assert launcher.process.wait(DEADLINE_SECONDS) == 1


@pytest.mark.parametrize("launcher", [{"startup_timeout_seconds": 0.2}], indirect=True)
@pytest.mark.parametrize("published", [True, False])
def test_a_handshake_that_takes_too_long_names_who_is_missing(
    launcher: Launcher, front_ends: list[FrontEnd], published: bool
) -> None:
    launcher.stages()
    if published:
        launcher.publish(front_ends[0].endpoint)
    message = launcher.hear()
    assert message["class"] == "StartupTimeout"
    assert (front_ends[0].endpoint if published else "list of front ends") in message["message"]
    assert launcher.process.wait(DEADLINE_SECONDS) == 1


def test_the_core_ends_when_the_launcher_is_gone(launcher: Launcher) -> None:
    launcher.stages()
    launcher.control.close()
    assert launcher.process.wait(DEADLINE_SECONDS) == 1


def test_a_killed_core_leaves_no_bye(launcher: Launcher) -> None:
    launcher.stages()
    launcher.process.send_signal(signal.SIGKILL)
    assert launcher.last_words() == b""


def test_an_idle_core_uses_no_processor_time(launcher: Launcher, front_ends: list[FrontEnd]) -> None:
    launcher.stages()
    front_end = front_ends[0]
    launcher.publish(front_end.endpoint)
    front_end.greet()
    front_end.say(greedy("r", [1], 3))
    front_end.outputs_until_idle()
    switches = _voluntary_switches(launcher.process.pid)
    # Nothing arrives, so the process must not wake at all while we wait for something that never comes.
    front_end.socket.setsockopt(zmq.RCVTIMEO, 1000)
    with pytest.raises(zmq.Again):
        front_end.hear()
    assert _voluntary_switches(launcher.process.pid) - switches <= 2


def _voluntary_switches(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])
