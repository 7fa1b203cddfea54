"""What a client that keeps connections sees when an API server goes: no request of it runs into the end of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from enginehouse_engine.api.http_protocol import HttpProtocol
from enginehouse_engine.protocol import Outputs, RequestOutput, encode

from .conftest import (
    ASK,
    DEADLINE_SECONDS,
    ApiServer,
    engine_config,
    eventually,
    get,
    read_until,
    request_bytes,
    says_and_goes_on,
)

END_OF_BODY = b"\r\n0\r\n\r\n"


def ends_at_once(connection: socket.socket) -> bool:
    """Whether its end is there as soon as the response's is: what a pool looks at before it uses a connection again."""
    data, deadline = b"", time.monotonic() + DEADLINE_SECONDS
    connection.setblocking(False)
    while not data.endswith(END_OF_BODY):
        assert time.monotonic() < deadline, f"no end of the response, found {data!r}"
        with contextlib.suppress(BlockingIOError):
            data += connection.recv(65536)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


def test_a_stream_that_began_before_the_drain_ends_together_with_its_connection(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        core = server.core()
        server.launcher.wait_for("ready")
        core.behaviour = says_and_goes_on("be")
        streams = []
        for _ in range(16):
            streams.append(server.raw(request_bytes({**ASK, "stream": True})))
            assert b"connection: close" not in read_until(streams[-1], b'"text":"e"')
        submits = [core.submits.get(timeout=DEADLINE_SECONDS) for _ in streams]
        server.launcher.send(type="drain", timeoutSeconds=60, settleSeconds=60)
        eventually(lambda: get(server, "/ready").status_code == 503, "ready says no")
        for connection, submit in zip(streams, submits, strict=True):
            core.send(encode(Outputs((RequestOutput(submit.request_id, (33,), "length"),))))
            assert ends_at_once(connection), "its client could send the next request into a connection that is about to be closed"


def test_connections_that_nobody_used_while_endpoints_settled_are_closed(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        core = server.core()
        server.launcher.wait_for("ready")
        kept = server.raw(request_bytes(ASK))
        read_until(kept, b"}}")
        new = server.raw(b"")
        core.behaviour = says_and_goes_on("be")
        stream = server.raw(request_bytes({**ASK, "stream": True}))
        read_until(stream, b'"text":"e"')
        core.submits.get(timeout=DEADLINE_SECONDS)
        submit = core.submits.get(timeout=DEADLINE_SECONDS)
        server.launcher.send(type="drain", timeoutSeconds=60, settleSeconds=0.2)
        for idle in (kept, new):
            assert idle.recv(1) == b""
        core.send(encode(Outputs((RequestOutput(submit.request_id, (33,), "length"),))))
        assert b"[DONE]" in read_until(stream, END_OF_BODY)
        server.launcher.wait_for("drained")


def test_the_end_of_an_idle_connection_is_there_at_once() -> None:
    """Not when the loop comes round, a tenth of a second later where the pod's CPU is limited: requests run into that."""
    closed: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("there was no request")

    async def story() -> None:
        config = uvicorn.Config(app, http=HttpProtocol, lifespan="off", log_config=None)
        state = uvicorn.server.ServerState()
        connected = asyncio.Event()

        class Connection(HttpProtocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
                super().connection_made(transport)
                connected.set()

        server = await asyncio.get_running_loop().create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.setblocking(False)
            await connected.wait()
            (connection,) = state.connections
            assert isinstance(connection, Connection)
            connection.close_if_idle()
            closed.append(client.recv(1))
        server.close()
        await server.wait_closed()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(story(), DEADLINE_SECONDS))
    assert closed == [b""]


def test_a_request_on_a_connection_that_was_opened_late_is_refused_and_not_reset(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        server.core()
        server.launcher.wait_for("ready")
        kept = server.raw(request_bytes(ASK))
        read_until(kept, b"}}")
        server.launcher.send(type="drain", timeoutSeconds=60, settleSeconds=1)
        eventually(lambda: get(server, "/ready").status_code == 503, "ready says no")
        late = server.raw(b"")
        assert kept.recv(1) == b"", "that is when the server closes what nobody uses"
        late.sendall(request_bytes(ASK))
        assert read_until(late, b"}}").startswith(b"HTTP/1.1 503")


@pytest.mark.parametrize(("timeout_seconds", "refuses"), [(60, False), (4, True)], ids=["until they stop", "for half of its time"])
def test_requests_that_still_come_after_endpoints_should_have_settled_are_answered(
    timeout_seconds: float, refuses: bool, tmp_path: Path
) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        server.core()
        server.launcher.wait_for("ready")
        server.launcher.send(type="drain", timeoutSeconds=timeout_seconds, settleSeconds=0.1)
        eventually(lambda: get(server, "/ready").status_code == 503, "ready says no")
        said = []
        for _ in range(8):  # four seconds, in none of which nobody comes
            said.append(read_until(server.raw(request_bytes(ASK)), b"}}").split(b" ", 2)[1])
            time.sleep(0.5)
        assert said[:3] == [b"200"] * 3
        assert set(said[3:]) == ({b"200", b"503"} if refuses else {b"200"})
        server.launcher.wait_for("drained")


def test_a_client_of_a_server_without_a_rank_is_sent_to_another_connection(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        server.core()
        server.launcher.wait_for("ready")
        server.launcher.send(type="ranks", ranks=[{"rank": 0, "incarnation": 1, "state": "Dead"}])
        eventually(lambda: get(server, "/ready").status_code == 503, "ready says no")
        answer = read_until(server.raw(request_bytes(ASK)), b"}}")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"connection: close\r\n" in answer
