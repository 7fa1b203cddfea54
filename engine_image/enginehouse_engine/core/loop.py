"""The engine core's loop: messages in, one step, outputs out; asleep in the kernel whenever there is nothing to compute.

Invariant: one thread and one place that waits; the wait has a deadline while an answer is owed and none while idle.
Does not load anything (``process.py``) and does not schedule (``engine_core.py``).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import zmq

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.core.engine_core import EngineCore
from enginehouse_engine.core.front_ends import FrontEnds
from enginehouse_engine.executor.contract import Executor
from enginehouse_engine.protocol import PROTOCOL_VERSION, Abort, Hello, Outputs, Refused, RequestOutput, Submit, ToCore, Welcome
from enginehouse_engine.registration import Registration, RegistrationError

logger = logging.getLogger("enginehouse.core")


class HandshakeTimeout(Exception):
    """Launcher or front ends did not answer in time; names who is missing."""

    failure_class = "StartupTimeout"


class HandshakeRefused(Exception):
    """A front end does not want this core; carries its reason."""


class Loop:
    """Serves until the launcher says ``stop``."""

    def __init__(
        self,
        registration: Registration,
        config: EngineConfig,
        core: EngineCore,
        executor: Executor,
        *,
        rank: int,
        incarnation: int,
        held: Sequence[dict[str, Any]] = (),
    ) -> None:
        """``held``: what the launcher has said already."""
        hello = Hello(
            version=PROTOCOL_VERSION,
            replica_uid=config.replica_uid,
            rank=rank,
            incarnation=incarnation,
            config_hash=config.hash(),
            max_context_length=core.fit.max_context_length,
            kv_blocks=core.fit.usable_blocks,
            block_size=config.block_size,
            max_batch=config.max_batch,
        )
        self._registration = registration
        self._config = config
        self._core = core
        self._executor = executor
        self._held = held
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._poller.register(registration.fileno(), zmq.POLLIN)
        workers = executor.fileno()
        if workers is not None:
            self._poller.register(workers, zmq.POLLIN)
        self._front_ends = FrontEnds(self._context, self._poller, hello)
        self._waiting_for = ["the launcher's list of front ends"]
        self._deadline = time.monotonic() + config.startup_timeout_seconds
        self._served = False
        """All front ends of a list have welcomed this core."""
        self._changed = False
        """Requests came or went since the front ends were told how many there are."""
        self._stopping = False

    def run(self) -> None:
        """Raises HandshakeTimeout, HandshakeRefused, LauncherGone, ProtocolError and whatever the executor raises."""
        try:
            for held in self._held:
                self._obey(held)
            while not self._stopping:
                if not self._core.has_work:
                    self._executor.attend()
                # One system call looks at everything: who has nothing to say, launcher included, is not asked again.
                ready = dict(self._poller.poll(self._patience_milliseconds()))
                while self._registration.fileno() in ready and (message := self._registration.receive()):
                    self._obey(message)
                for front_end, request in self._front_ends.receive(ready):
                    self._take(front_end, request)
                self._advance()
        finally:
            self._front_ends.close()
            self._context.term()

    def _patience_milliseconds(self) -> int | None:
        if self._core.has_work:
            return 0
        if not self._waiting_for:
            return None
        left = self._deadline - time.monotonic()
        if left > 0:
            return math.ceil(left * 1000)
        silence = f"no answer in {self._config.startup_timeout_seconds:.0f} s from {', '.join(self._waiting_for)}"
        if not self._served:
            raise HandshakeTimeout(silence)
        # A front end that came late and is silent is the launcher's to judge; the others still need this core.
        logger.error("%s", silence)
        self._waiting_for = []
        return None

    def _obey(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "addresses":
                self._connect(message)
            case "ping":
                # Answered here and nowhere else: between two steps, by the thread that computes them.
                self._registration.send("pong", steps=self._core.steps, requests=self._core.requests)
            case "stop":
                self._stopping = True
            case other:
                logger.info("message %r of the launcher is not known here", other)

    def _connect(self, message: dict[str, Any]) -> None:
        try:
            replica_uid = message["replicaUid"]
            endpoints = {int(front_end["index"]): str(front_end["endpoint"]) for front_end in message["frontEnds"]}
        except (KeyError, TypeError, ValueError) as error:
            raise RegistrationError(f"addresses are {{frontEnds: [{{index, endpoint}}], replicaUid}}, found {message}") from error
        if replica_uid != self._config.replica_uid:
            logger.warning("addresses of replica %s are ignored, this is %s", replica_uid, self._config.replica_uid)
            return
        for index in self._front_ends.update(endpoints, self._core.stats()):
            self._core.abort_front_end(index)
            self._changed = True
        self._deadline = time.monotonic() + self._config.startup_timeout_seconds
        self._waiting_for = self._front_ends.unwelcomed()

    def _take(self, front_end: int, message: ToCore) -> None:
        match message:
            case Submit():
                if refusal := self._core.add(message, front_end=front_end):
                    self._front_ends.send(front_end, Outputs((refusal,), self._core.stats()))
                else:
                    self._changed = True
            case Abort():
                self._core.abort(message.request_ids, front_end=front_end)
                self._changed = True
            case Welcome():
                self._front_ends.welcome(front_end)
                self._waiting_for = self._front_ends.unwelcomed()
                self._served = self._served or not self._waiting_for
            case Refused():
                raise HandshakeRefused(f"front end {front_end} refused this core: {message.reason}")

    def _advance(self) -> None:
        """One step if there is work.

        All front ends hear the figures of each step, and of arrivals before a step that may take long: they choose by them.
        """
        if self._changed and (len(self._front_ends) > 1 or not self._core.has_work):
            self._tell({})
        self._changed = False
        if self._core.has_work:
            self._tell(self._core.step())

    def _tell(self, outputs: Mapping[int, tuple[RequestOutput, ...]]) -> None:
        stats = self._core.stats()
        for front_end in self._front_ends.indices():
            self._front_ends.send(front_end, Outputs(outputs.get(front_end, ()), stats))
