"""Clients that connect and then do not say what they want, or do not read what they asked for."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enginehouse_engine.api.endpoints import read_body
from enginehouse_engine.api.errors import ApiError
from enginehouse_engine.api.http_protocol import CONNECTION, HttpProtocol

DEADLINE_SECONDS = 20.0


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp, *, protocol: type[HttpProtocol] = HttpProtocol, timeout_keep_alive: int = 5
) -> AsyncIterator[tuple[str, int]]:
    """Where the application listens."""
    config = uvicorn.Config(app, http=protocol, port=0, lifespan="off", log_config=None, timeout_keep_alive=timeout_keep_alive)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        host, port = server.servers[0].sockets[0].getsockname()
        yield host, port
    finally:
        await server.shutdown()


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=["nothing", "half a head"])
def test_a_connection_without_a_request_is_closed(said: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("there was no request")

    async def story() -> bytes:
        async with serving(app, timeout_keep_alive=0) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(said)
            # Closed with something unread in it, a connection ends with a reset.
            with contextlib.closing(writer), contextlib.suppress(ConnectionResetError):
                return await asyncio.wait_for(reader.read(), DEADLINE_SECONDS)
            return b""

    assert asyncio.run(story()) == b""


@pytest.mark.parametrize(
    ("body_bytes", "later"), [(0, b"\r\n"), (9, b"half")], ids=["an empty line", "half a body that nobody wanted"]
)
def test_a_connection_on_which_no_other_request_begins_is_closed(body_bytes: int, later: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"over")(scope, receive, send)

    async def story() -> bytes:
        async with serving(app, timeout_keep_alive=1) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % body_bytes)
            with contextlib.closing(writer):
                await asyncio.wait_for(reader.readuntil(b"over"), DEADLINE_SECONDS)
                writer.write(later)
                return await asyncio.wait_for(reader.read(), DEADLINE_SECONDS)

    assert asyncio.run(story()) == b""


class Impatient(HttpProtocol):
    stall_seconds = 0.2


def test_what_a_client_does_not_read_is_not_collected_and_ends_its_request() -> None:
    """The application waits, so nothing grows but what it has not sent yet: an answer has at most ``max_tokens`` tokens."""
    part = b"x" * 0x10000
    waiting: list[int] = []
    parts = 0
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal parts

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        left = asyncio.create_task(gone())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not left.done():
            waiting.append(scope["state"][CONNECTION].transport.get_write_buffer_size())
            await send({"type": "http.response.body", "body": part, "more_body": True})
            parts += 1
            await asyncio.sleep(0)
        over.set()

    async def story() -> None:
        async with serving(app, protocol=Impatient) as address:
            with socket.create_connection(address) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await asyncio.wait_for(over.wait(), DEADLINE_SECONDS)

    asyncio.run(story())
    assert max(waiting) <= 2 * len(part) + 100, "the high-water mark, and a part with its chunk's head"
    assert parts < 1000, "the kernel's buffers took them"


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    scope = {"type": "http", "method": "POST", "headers": []}
    with pytest.raises(ApiError) as refused:
        asyncio.run(read_body(Request(scope, receive), timeout_seconds=0.0))
    assert (refused.value.status, refused.value.detail.code) == (408, "request_timeout")
    assert refused.value.headers["Connection"] == "close"


def test_a_body_that_comes_byte_by_byte_is_given_up_as_a_whole_and_its_connection_closed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_body(Request(scope, receive), timeout_seconds=0.3)
        except ApiError as error:
            await Response(error.body(), error.status, headers=error.headers)(scope, receive, send)

    def answer_to_drips(address: tuple[str, int]) -> bytes:
        deadline = time.monotonic() + DEADLINE_SECONDS
        with socket.create_connection(address, timeout=DEADLINE_SECONDS) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            while not select.select([client], [], [], 0.02)[0]:
                assert time.monotonic() < deadline, "the server waits on"
                with contextlib.suppress(ConnectionError):  # closed just now: what it said is read below
                    client.sendall(b" ")
            said = b""
            # Closed with something unread in it, a connection ends with a reset.
            with contextlib.suppress(ConnectionResetError):
                while part := client.recv(65536):
                    said += part
            return said

    async def story() -> bytes:
        async with serving(app, timeout_keep_alive=10 * int(DEADLINE_SECONDS)) as address:
            return await asyncio.to_thread(answer_to_drips, address)

    head, _, body = asyncio.run(story()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in body
