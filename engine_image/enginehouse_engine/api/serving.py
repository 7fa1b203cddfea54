"""The life of an API server after its imports: listen, load, meet the cores, serve, drain, stop.

Invariant: ``/health`` answers while the model's files are still being read; ``ready`` is said when all ranks have said hello, and
again whenever one comes or goes; every wait of an ending has a deadline. The only place that acts on the launcher's messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
import uvloop

from enginehouse_engine import config as configuration
from enginehouse_engine.api import errors
from enginehouse_engine.api.certificate import Certificate
from enginehouse_engine.api.front_end import FrontEnd
from enginehouse_engine.api.http_protocol import HttpProtocol
from enginehouse_engine.api.metrics import Metrics
from enginehouse_engine.api.ranks import RankState
from enginehouse_engine.api.server import create_app
from enginehouse_engine.api.service import ModelText, Service
from enginehouse_engine.config import ConfigError, EngineConfig
from enginehouse_engine.registration import LauncherGone, Registration
from enginehouse_engine.text import tokenizer as tokenizers
from enginehouse_engine.text.chat_template import ChatTemplate, ChatTemplateError

logger = logging.getLogger("enginehouse.api")

_FLUSH_SECONDS: Final = 1.0
"""For handlers to send the error that their requests ended with."""
_QUIET_SECONDS: Final = 2.0
"""Without a new request: then endpoints have settled."""
_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than what load balancers keep idle connections for, so that they and not we close them."""
_EXIT_LAUNCHER_GONE: Final = 1


def run(registration: Registration, *, config_path: Path, index: int, http_descriptor: int, directory: Path) -> None:
    """Serve until the launcher says ``stop``. Raises ConfigError, LauncherGone and whatever breaks."""
    config = configuration.load(config_path)
    listener = socket.socket(fileno=http_descriptor)
    with (
        tempfile.TemporaryDirectory(prefix=f"api-{index}-", dir=directory) as private,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        serving = _Serving(registration, config, index=index, directory=Path(private), metrics_directory=directory / "metrics")
        runner.run(serving.run(listener))


class _Server(uvicorn.Server):
    """Leaves signals alone: the launcher says when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Serving:
    def __init__(
        self, registration: Registration, config: EngineConfig, *, index: int, directory: Path, metrics_directory: Path
    ) -> None:
        self._registration = registration
        self._config = config
        self._index = index
        self._directory = directory
        self._metrics_directory = metrics_directory
        self._said_ready: dict[str, Any] = {}
        self._said_drained: set[tuple[int, int]] = set()
        self._stop = asyncio.Event()
        self._drain: asyncio.Task[None] | None = None

    async def run(self, listener: socket.socket) -> None:
        """Until ``stop``."""
        front_end = FrontEnd(self._config, index=self._index, directory=self._directory, on_change=self._say_how_things_are)
        self._front_end = front_end
        self._service = Service(
            model_name=self._config.served_model_name,
            front_end=front_end,
            metrics=Metrics(front_end.ranks, api_server=self._index, directory=self._metrics_directory),
            api_key=_api_key(self._config.api_key_file),
        )
        certificate = _certificate(self._config)
        server = _Server(
            uvicorn.Config(
                create_app(self._service),
                http=HttpProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
                ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
            )
        )
        self._http = server.server_state
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._registration.send("bound", endpoint=front_end.endpoint)
        asyncio.get_running_loop().add_reader(self._registration.fileno(), self._obey)
        http = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            self._registration.stage("load")
            self._service.text = await asyncio.get_running_loop().run_in_executor(
                self._service.threads, _load_text, self._config.model_path
            )
            self._registration.stage("handshake")
            self._say_how_things_are()
            await self._until_stopped(http)
            await self._end_requests(errors.unavailable("this engine is stopping; the request may be sent again", code="stopping"))
        finally:
            asyncio.get_running_loop().remove_reader(self._registration.fileno())
            server.should_exit = True
            await http
            front_end.close()

    async def _until_stopped(self, http: asyncio.Task[None]) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((stopped, http), return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            stopped.cancel()
            await http
            raise RuntimeError("the HTTP server ended by itself")

    def _say_how_things_are(self) -> None:
        """What the launcher was not told yet."""
        if self._service.complete:
            self._say_ready()
        for rank, incarnation in sorted(self._front_end.ranks.drained() - self._said_drained):
            self._said_drained.add((rank, incarnation))
            self._registration.send("rankDrained", rank=rank, incarnation=incarnation)

    def _say_ready(self) -> None:
        """From the moment when this server is complete, and again whenever a rank has come or gone."""
        hellos = sorted((rank.hello for rank in self._front_end.ranks), key=lambda hello: hello.rank)
        ranks = [
            {
                "rank": hello.rank,
                "incarnation": hello.incarnation,
                "maxContextLength": hello.max_context_length,
                "kvBlocks": hello.kv_blocks,
                "blockSize": hello.block_size,
            }
            for hello in hellos
        ]
        fits = {"ranks": ranks, "maxContextLength": self._front_end.ranks.max_context_length}
        if fits != self._said_ready:
            self._said_ready = fits
            self._registration.send("ready", **fits)

    def _obey(self) -> None:
        try:
            while (message := self._registration.receive()) is not None:
                self._obey_one(message)
        except LauncherGone as error:
            # Nobody owns this process any more: no answer that it could still give is worth a process without an owner.
            logger.error("%s", error)
            os._exit(_EXIT_LAUNCHER_GONE)

    def _obey_one(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "drain" if self._drain is None:
                timeout = float(message.get("timeoutSeconds", self._config.drain_timeout_seconds))
                settle = float(message.get("settleSeconds", 0.0))
                self._drain = asyncio.create_task(self._drained(timeout_seconds=timeout, settle_seconds=settle))
            case "ranks":
                self._learn(message)
            case "ping":
                # On the event loop, which answers the clients: it goes round.
                self._registration.send("pong")
            case "stop":
                self._stop.set()
            case other:
                logger.info("message %r of the launcher is not acted on here", other)

    def _learn(self, message: dict[str, Any]) -> None:
        try:
            states = msgspec.convert(message.get("ranks"), list[RankState])
            lowest = msgspec.convert(message.get("maxContextLength"), int | None)
        except msgspec.ValidationError as error:
            logger.error("ranks are [{rank, incarnation, state}], found %s: %s", message, error)
            return
        if lowest is not None:
            self._front_end.ranks.lower_limit(lowest)
        self._front_end.told(states)
        self._say_how_things_are()

    async def _drained(self, *, timeout_seconds: float, settle_seconds: float) -> None:
        """Go on accepting while clients learn of it, then refuse, finish what is under way, and say so.

        Endpoints settle in ``settle_seconds``; where requests still come then, for up to half of the time that is left.
        """
        deadline = time.monotonic() + timeout_seconds
        self._service.draining = True
        kept = [connection for connection in self._http.connections if isinstance(connection, HttpProtocol)]
        await asyncio.sleep(min(settle_seconds, timeout_seconds))
        if settle_seconds:
            await self._until_nobody_comes((time.monotonic() + deadline) / 2)
        self._service.closed = True
        # Whoever used its connection meanwhile has left it, these were idle all the time. A new one is about to be used.
        for connection in kept:
            connection.close_if_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._service.idle.wait(), max(0.0, deadline - time.monotonic()))
        await self._end_requests(errors.unavailable("the engine's time to drain is over; send the request again", code="draining"))
        self._registration.send("drained")

    async def _until_nobody_comes(self, deadline: float) -> None:
        """Whoever still sends requests here has not heard of the end yet, and would lose them when this server goes."""
        while (left := min(self._service.entered + _QUIET_SECONDS, deadline) - time.monotonic()) > 0:  # noqa: ASYNC110 - no poll
            await asyncio.sleep(left)  # to a time that is known, which another request may move on

    async def _end_requests(self, failure: errors.ApiError) -> None:
        """Whatever is still under way ends with ``failure``."""
        self._service.draining = self._service.closed = True
        self._front_end.fail_all(failure)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._service.idle.wait(), _FLUSH_SECONDS)


def _load_text(model_path: str) -> ModelText:
    try:
        tokenizer = tokenizers.load(model_path)
    except tokenizers.TokenizerError as error:
        raise ConfigError(str(error)) from error
    if tokenizer.chat_template is None:
        return ModelText(tokenizer, None, "this model has no chat template")
    try:
        return ModelText(tokenizer, ChatTemplate(tokenizer.chat_template, special_tokens=tokenizer.special_tokens))
    except ChatTemplateError as error:
        logger.warning("chat is refused: %s", error)
        return ModelText(tokenizer, None, str(error))


def _certificate(config: EngineConfig) -> Certificate | None:
    if config.tls_certificate_file is None or config.tls_key_file is None:
        return None
    return Certificate(config.tls_certificate_file, config.tls_key_file)


def _api_key(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        key = Path(file).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the API key's file cannot be read: {error}") from error
    if not key:
        raise ConfigError(f"the API key's file {file} is empty: write the key into it, or leave out --api-key-file")
    return key
