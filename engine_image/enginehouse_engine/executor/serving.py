"""A worker's side of the message queue: calls in, one after the other, answers out.

What is served is any object with the methods that are called: the model's worker, or a simulated one. Nothing of torch here.

Invariant: calls are answered in order, each with its correlation id; whatever a call raises ends the serving.
Does not load anything and does not know how the process started (``worker_process.py``).
"""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from enginehouse_engine.engine_process import Failure
from enginehouse_engine.executor.contract import StepInput, StepOutput, WorkerProfile
from enginehouse_engine.executor.messages import Call, Failed, FromWorker, Step, ToWorker, answer
from enginehouse_engine.message_queue import MessageCodec, QueueAddress, Reader, Writer, open_local_reader, open_remote_reader
from enginehouse_engine.message_queue.errors import NothingReceived, QueueClosed, QueueError, WriterGone
from enginehouse_engine.shared_memory_size import RESPONSE_RING_BYTES

CORE_READER: Final = "engine core"
"""The only reader of a worker's queue."""

_IDLE_SECONDS: Final = 24 * 3600.0
"""An idle worker looks whether it is still idle so often; whatever concerns it wakes it."""
_ANSWER_SECONDS: Final = 60.0
"""A core that leaves no room for an answer for so long does not read any more."""
_LAST_WORDS_SECONDS: Final = 1.0


class CoreGone(Exception):
    """There is nobody left to work for."""


class Served(Protocol):
    """What a worker process serves. The core may also call any other method that the object has."""

    record: dict[str, str]
    """What the other workers have to know of this one; bound already."""

    def meet(self, first: dict[str, Any]) -> None:
        """Told once, before anything is called: worker 0's record."""

    def load(self) -> None:
        """Become ready for the rest: join the other workers, load the model."""

    def profile(self) -> WorkerProfile: ...

    def initialize_kv_cache(self, total_blocks: int) -> None: ...

    def execute_model(self, step: StepInput) -> StepOutput | None:
        """None = another worker of the rank answers."""

    def check_health(self) -> None: ...


def reader_name(index: int) -> str:
    """Of a worker, in the queue of its engine core."""
    return f"worker {index}"


class CoreConnection:
    """Both queues between one worker and its engine core. The one that this worker writes is bound on construction."""

    def __init__(self, *, rank: int, index: int, incarnation: int, remote_host: str = "") -> None:
        """``remote_host``: an address of this worker's, if its engine core lives in another member."""
        self._open_reader = open_remote_reader if remote_host else open_local_reader
        self._name = reader_name(index)
        self._incarnation = incarnation
        self._encoder: MessageCodec[FromWorker] = MessageCodec(FromWorker)
        self._decoder: MessageCodec[ToWorker] = MessageCodec(ToWorker)
        self._writer = Writer(
            queue="answers",
            writer=f"worker {index} of rank {rank}",
            generation=incarnation,
            readers=[CORE_READER],
            ring_bytes=RESPONSE_RING_BYTES,
            remote_host=remote_host,
        )
        self._reader: Reader | None = None

    @property
    def address(self) -> QueueAddress:
        return self._writer.address

    def attach(self, steps: QueueAddress, *, deadline_seconds: float) -> None:
        """First let the core in, then go to it: the core does it the other way round. Raises QueueError."""
        deadline = time.monotonic() + deadline_seconds
        self._writer.wait_until_ready(deadline_seconds=deadline_seconds)
        left = max(0.001, deadline - time.monotonic())
        self._reader = self._open_reader(steps, reader=self._name, generation=self._incarnation, deadline_seconds=left)

    def serve(self, served: Served) -> None:
        """Until the core ends: raises CoreGone. Whatever a call raises comes through."""
        if self._reader is None:
            raise RuntimeError("attach comes before serve")
        while True:
            try:
                call = self._reader.receive(deadline_seconds=_IDLE_SECONDS)
            except NothingReceived:
                continue
            except (QueueClosed, WriterGone) as error:
                raise CoreGone(str(error)) from error
            value = _called(served, self._decoder.decode(call.frames))
            if value is not None:
                self._send(value, correlation=call.correlation, deadline_seconds=_ANSWER_SECONDS)

    def say_failed(self, failure: Failure) -> None:
        """The worker's last words."""
        try:
            self._send(Failed(failure.kind, failure.message), correlation=0, deadline_seconds=_LAST_WORDS_SECONDS)
        except QueueError:
            return  # Nobody reads: the launcher knows.

    def _send(self, message: FromWorker, *, correlation: int, deadline_seconds: float) -> None:
        self._writer.send(self._encoder.encode(message), correlation=correlation, deadline_seconds=deadline_seconds)


def _called(served: Served, message: ToWorker) -> FromWorker | None:
    """The answer, or None when none is owed."""
    match message:
        case Step(step=step):
            output = served.execute_model(step)
            return None if output is None else answer(output)
        case Call(method=method, arguments=arguments):
            function: Any = getattr(served, method)
            return answer(function(*arguments))
