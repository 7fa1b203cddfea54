"""The real API server process between a scripted launcher and scripted engine cores."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import zmq

from enginehouse_engine import config as configuration
from enginehouse_engine.config import EngineConfig, ParallelConfig
from enginehouse_engine.executor.simulated import END_TOKEN
from enginehouse_engine.protocol import (
    PROTOCOL_VERSION,
    Abort,
    Hello,
    Outputs,
    PromptLogprobs,
    RequestOutput,
    Submit,
    ToCore,
    TokenLogprobs,
    decode_to_core,
    encode,
    pack_tokens,
    unpack_tokens,
)

SOURCES = Path(__file__).parents[3] / "engine_image"
DEADLINE_SECONDS = 20.0
ANSWER = "The answer is 42."
LIMIT = 64

ASK = {"model": "sim", "prompt": "x", "max_tokens": 10}
"""A small completion."""

Behaviour = Callable[[Submit], Iterable[RequestOutput]]


def engine_config(**changes: Any) -> EngineConfig:
    """Of a simulated engine without a model: the byte tokenizer."""
    fields: dict[str, Any] = {
        "replica_uid": "uid-1",
        "model_path": "",
        "model_uri": "sim",
        "served_model_name": "sim",
        "executor": "Simulated",
        "memory_budget_bytes": 1 << 30,
    }
    return EngineConfig(**{**fields, **changes})


def hello(config: EngineConfig, **changes: Any) -> Hello:
    """A valid one of rank 0, incarnation 1."""
    fields: dict[str, Any] = {
        "version": PROTOCOL_VERSION,
        "replica_uid": config.replica_uid,
        "rank": 0,
        "incarnation": 1,
        "config_hash": config.hash(),
        "max_context_length": LIMIT,
        "kv_blocks": 32,
        "block_size": 16,
        "max_batch": 8,
    }
    return Hello(**{**fields, **changes})


def says(text: str) -> Behaviour:
    """Answers with ``text``, a byte for each token, then the end token; cut at max_tokens."""

    def behaviour(submit: Submit) -> Iterator[RequestOutput]:
        tokens = [*text.encode(), END_TOKEN]
        most = submit.sampling.max_tokens
        scores = _prompt_logprobs(submit)
        if most == 0:
            yield RequestOutput(submit.request_id, (), "length", prompt_logprobs=scores)
        for place, token in enumerate(tokens[:most]):
            end = token == END_TOKEN
            reason = "stop" if end else "length" if place + 1 == most else None
            yield RequestOutput(
                submit.request_id,
                (token,),
                reason,
                stop_token=token if end else None,
                logprobs=_logprobs(token, submit.sampling.logprobs),
                prompt_logprobs=scores if place == 0 else None,
                cached_tokens=3 if place == 0 else 0,
            )

    return behaviour


def says_nothing(submit: Submit) -> Iterator[RequestOutput]:
    """Takes the request and never answers."""
    return iter(())


def says_and_goes_on(text: str) -> Behaviour:
    """Begins an answer that does not end."""

    def behaviour(submit: Submit) -> Iterator[RequestOutput]:
        for byte in text.encode():
            yield RequestOutput(submit.request_id, (byte,))

    return behaviour


def _logprobs(token: int, wanted: int | None) -> tuple[TokenLogprobs, ...]:
    if wanted is None:
        return ()
    top = tuple((token + place) % 257 for place in range(wanted))
    return (TokenLogprobs(token, -0.5, top, tuple(-0.5 - place for place in range(wanted))),)


def _prompt_logprobs(submit: Submit) -> PromptLogprobs | None:
    """The token at place i has minus i, and is followed by its successors in the vocabulary as the next best."""
    wanted = submit.sampling.prompt_logprobs
    if wanted is None:
        return None
    tokens = unpack_tokens(submit.prompt)
    places = range(1, len(tokens))
    return PromptLogprobs(
        logprobs=array("f", [-place for place in places]).tobytes(),
        alternatives=wanted,
        top_tokens=pack_tokens([(tokens[place] + rank) % 257 for place in places for rank in range(wanted)]),
        top_logprobs=array("f", [-place - rank for place in places for rank in range(wanted)]).tobytes(),
    )


class Core:
    """A DEALER that says hello and then does what ``behaviour`` says."""

    def __init__(self, endpoint: str, greeting: Hello, *, identity: str | None = None) -> None:
        self.behaviour: Behaviour = says(ANSWER)
        self.submits: queue.Queue[Submit] = queue.Queue()
        self.aborts: queue.Queue[str] = queue.Queue()
        self.others: queue.Queue[ToCore] = queue.Queue()
        self._wishes: queue.Queue[list[bytes]] = queue.Queue()
        self._endpoint = endpoint
        self._greeting = greeting
        self._identity = identity or f"{greeting.rank}-{greeting.incarnation}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(DEADLINE_SECONDS)

    def send(self, *frames: bytes) -> None:
        """Raw frames, or encoded messages."""
        self._wishes.put(list(frames))

    def _run(self) -> None:
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, self._identity.encode())
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(self._endpoint)
        dealer.send(encode(self._greeting))
        while not self._ended.is_set():
            while not self._wishes.empty():
                dealer.send_multipart(self._wishes.get())
            if not dealer.poll(5):
                continue
            message = decode_to_core(dealer.recv_multipart())
            if isinstance(message, Submit):
                self.submits.put(message)
                for output in self.behaviour(message):
                    dealer.send(encode(Outputs((output,))))
            elif isinstance(message, Abort):
                for request_id in message.request_ids:
                    self.aborts.put(request_id)
            else:
                self.others.put(message)
        dealer.close()
        context.term()


@dataclass
class Launcher:
    """Takes one registration and keeps what the process says."""

    path: Path
    messages: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    descriptors: list[int] = field(default_factory=list)
    connection: socket.socket | None = None

    def listen(self) -> None:
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.bind(str(self.path))
        self._server.listen(1)
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        self.connection, _ = self._server.accept()
        data, self.descriptors, _, _ = socket.recv_fds(self.connection, 65536, 2)
        self.messages.put(json.loads(data))
        self.connection.send(b'{"type": "registered", "message": ""}')
        while data := self.connection.recv(65536):
            self.messages.put(json.loads(data))

    def wait_for(self, type: str) -> dict[str, Any]:
        """The next message of that type."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (message := self.messages.get(timeout=max(0.001, deadline - time.monotonic())))["type"] != type:
            pass
        return message

    def send(self, **message: Any) -> None:
        assert self.connection is not None
        self.connection.send(json.dumps(message).encode())

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self._server.close()
        if self.connection is not None:
            self.connection.close()


class ApiServer:
    """The process under test. Without ``hello`` nobody serves yet."""

    def __init__(self, folder: Path, config: EngineConfig) -> None:
        self.config = config
        self.launcher = Launcher(folder / "launcher.sock")
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.launcher.listen()
        configuration.save(self.config, self._folder / "config.json")
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = (self._folder / "log").open("w+")
        arguments = ["--launcher-socket", str(self.launcher.path), "--config", str(self._folder / "config.json"), "--index", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "enginehouse_engine.api.process", *arguments, "--http-fd", str(listener.fileno())],
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
            pass_fds=[listener.fileno()],
            stderr=self.log,
        )
        listener.close()
        return self

    def endpoint(self) -> str:
        """Where cores connect."""
        return str(self.launcher.wait_for("bound")["endpoint"])

    def core(self, **changes: Any) -> Core:
        """One more core that says hello."""
        if not hasattr(self, "_endpoint"):
            self._endpoint = self.endpoint()
        return self._stack.enter_context(Core(self._endpoint, hello(self.config, **changes)))

    def raw(self, request: bytes) -> socket.socket:
        """A connection on which ``request`` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_SECONDS)
        connection.sendall(request)
        return connection

    def log_text(self) -> str:
        return (self._folder / "log").read_text()

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.launcher.close()
        self.log.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiServer, Core]]:
    """A server with one core; tests of a file share it and leave it as they found it."""
    with ApiServer(tmp_path_factory.mktemp("server"), engine_config()) as server:
        core = server.core()
        server.launcher.wait_for("ready")
        yield server, core


@pytest.fixture
def server(shared: tuple[ApiServer, Core]) -> ApiServer:
    return shared[0]


@pytest.fixture
def core(shared: tuple[ApiServer, Core]) -> Core:
    """Answers ``ANSWER`` unless told otherwise; what it was sent before is forgotten."""
    core = shared[1]
    core.behaviour = says(ANSWER)
    for box in (core.submits, core.aborts, core.others):
        while not box.empty():
            box.get()
    return core


@pytest.fixture
def http(server: ApiServer, core: Core) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=DEADLINE_SECONDS) as client:
        yield client


def eventually(check: Callable[[], bool], what: str) -> None:
    """Poll until ``check`` holds, with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not check():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:.0f} s for: {what}"
        time.sleep(0.005)


def request_bytes(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    """One POST."""
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def read_until(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        part = connection.recv(65536)
        assert part, f"the server closed the connection before {end!r}, after {data!r}"
        data += part
    return data


def get(server: ApiServer, path: str) -> httpx.Response:
    return httpx.get(server.url + path, timeout=DEADLINE_SECONDS)


def post(server: ApiServer, body: dict[str, Any] = ASK) -> httpx.Response:
    return httpx.post(server.url + "/v1/completions", json=body, timeout=DEADLINE_SECONDS)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[ApiServer]:
    """A server of two ranks that has met none of them."""
    with ApiServer(tmp_path, engine_config(parallel=ParallelConfig(data=2))) as server:
        yield server
