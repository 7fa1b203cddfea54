"""Workers in processes of their own, one per accelerator: launchers start them, this is the engine core's side. Those of other
members are reached over TCP, the others through shared memory.

One queue takes calls to all workers, one from each brings answers. A step is sent once, and the worker that chooses answers; every
other call is answered by all. Each call has a number, and an answer that bears another one is an error.

Invariant: every wait looks at all workers at once, so that the failure of any of them ends it, and has a deadline that names who
is missing. After a failure every call raises it again. Does not start, stop or reap workers, and does not import torch.
"""

from __future__ import annotations

import itertools
import select
import time
from typing import Any, Final

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.executor.contract import Executor, ExecutorFailure, StepInput, StepOutput, WorkerGone, WorkerProfile
from enginehouse_engine.executor.messages import Call, Failed, FromWorker, Profiled, Returned, Step, Stepped, ToWorker
from enginehouse_engine.executor.rendezvous import WORKER, Peer, Rendezvous, peer, queue_record
from enginehouse_engine.executor.serving import CORE_READER, reader_name
from enginehouse_engine.message_queue import MessageCodec, Reader, Writer, open_local_reader, open_remote_reader
from enginehouse_engine.message_queue.errors import QueueError

STEP_SECONDS: Final = 600.0
"""For a step or another call of a rank that serves: no sound one takes as long. Twice what workers wait for each other in a
step, so that theirs, which knows more, comes first. A hang is found sooner by the stall deadline, not by this."""
HEALTH_SECONDS: Final = 30.0
_NO_CALL: Final = 0


class MultiprocessExecutor(Executor):
    """Meets the workers and has them load the model on construction, within the start-up timeout."""

    def __init__(self, config: EngineConfig, *, rank: int, incarnation: int, rendezvous: Rendezvous) -> None:
        self._deadline = time.monotonic() + config.startup_timeout_seconds
        self._rank = rank
        self._incarnation = incarnation
        workers = config.workers_per_rank
        self._config = config
        self._chooser = workers - config.parallel.tensor
        """The first worker of the last stage."""
        self._encoder: MessageCodec[ToWorker] = MessageCodec(ToWorker)
        self._decoder: MessageCodec[FromWorker] = MessageCodec(FromWorker)
        self._calls = itertools.count(1)
        self._starting = True
        self._failure: ExecutorFailure | None = None
        self._closed = False
        self._epoll = select.epoll()
        self._readers: list[Reader] = []
        self._writer = Writer(
            queue="steps",
            writer=f"engine core of rank {rank}",
            generation=incarnation,
            readers=[reader_name(index) for index in range(workers)],
            remote_host=config.members.address if any(self._is_remote(index) for index in range(workers)) else "",
        )
        try:
            rendezvous.publish(queue_record(self._writer.address))
            self._attach(rendezvous.peers(deadline_seconds=self._startup_seconds()), workers)
            self._call("load", deadline_seconds=self._startup_seconds())
        except BaseException:
            self.shutdown()
            raise

    def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        return self._call(method, *arguments, deadline_seconds=STEP_SECONDS)

    def determine_available_memory(self) -> list[WorkerProfile]:
        return self._call("profile", deadline_seconds=self._startup_seconds())

    def initialize_kv_cache(self, total_blocks: int) -> None:
        self._call("initialize_kv_cache", total_blocks, deadline_seconds=self._startup_seconds())
        self._starting = False

    def execute_model(self, step: StepInput) -> StepOutput:
        number = self._send(Step(step), deadline_seconds=STEP_SECONDS)
        chooser = range(self._chooser, self._chooser + 1)
        answer = self._answers(number, chooser, "a step", deadline_seconds=STEP_SECONDS)[self._chooser]
        if not isinstance(answer, Stepped):
            raise self._failed(f"{reader_name(self._chooser)} answered a step with {type(answer).__name__}")
        return answer.output

    def fileno(self) -> int | None:
        return self._epoll.fileno()

    def attend(self) -> None:
        """Raises ExecutorFailure when a worker is gone, or said anything without being asked."""
        self._check_usable()
        self._look(_NO_CALL, range(0))

    def check_health(self) -> None:
        self._call("check_health", deadline_seconds=HEALTH_SECONDS)

    def shutdown(self) -> None:
        """The workers learn that the queue is closed, and wait for the launcher to stop them."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        for reader in self._readers:
            reader.close()
        self._epoll.close()

    def _attach(self, peers: tuple[Peer, ...], workers: int) -> None:
        """First go to all workers, then let them in: they do it the other way round."""
        try:
            for index in range(workers):
                address = peer(peers, WORKER, index).queue()
                open_reader = open_remote_reader if self._is_remote(index) else open_local_reader
                reader = open_reader(
                    address, reader=CORE_READER, generation=self._incarnation, deadline_seconds=self._startup_seconds()
                )
                self._readers.append(reader)
                self._epoll.register(reader.fileno(), select.EPOLLIN)
            self._writer.wait_until_ready(deadline_seconds=self._startup_seconds())
        except QueueError as error:
            raise self._failed(str(error), late=self._startup_seconds() == 0) from error

    def _is_remote(self, index: int) -> bool:
        return self._config.member_of(rank=self._rank, index=index) != self._config.members.own

    def _call(self, method: str, *arguments: Any, deadline_seconds: float) -> list[Any]:
        """What every worker returned, in the order of the workers."""
        number = self._send(Call(method, arguments), deadline_seconds=deadline_seconds)
        everyone = range(len(self._readers))
        answers = self._answers(number, everyone, method, deadline_seconds=deadline_seconds)
        return [_value(answers[index]) for index in everyone]

    def _send(self, message: ToWorker, *, deadline_seconds: float) -> int:
        """The number of the call."""
        self._check_usable()
        number = next(self._calls)
        try:
            self._writer.send(self._encoder.encode(message), correlation=number, deadline_seconds=deadline_seconds)
        except QueueError as error:
            raise self._gone(str(error)) from error
        return number

    def _answers(self, number: int, wanted: range, what: str, *, deadline_seconds: float) -> dict[int, FromWorker]:
        """The answers of the wanted workers to this call."""
        deadline = time.monotonic() + deadline_seconds
        answers = self._look(number, wanted, spin=len(wanted) == 1)
        while len(answers) < len(wanted):
            left = deadline - time.monotonic()
            if left <= 0:
                missing = ", ".join(reader_name(index) for index in wanted if index not in answers)
                raise self._failed(f"no answer to {what} in {deadline_seconds:.3g} s from {missing}", late=self._starting)
            self._epoll.poll(left)
            answers |= self._look(number, wanted)
        return answers

    def _look(self, number: int, wanted: range, *, spin: bool = False) -> dict[int, FromWorker]:
        """What the workers have answered to this call. Those that have not signal when they do, and when they fail."""
        answers: dict[int, FromWorker] = {}
        gone: list[str] = []
        told: list[Failed] = []
        for index, reader in enumerate(self._readers):
            name = reader_name(index)
            try:
                while index not in answers and (received := reader.take(spin=spin and index in wanted)) is not None:
                    message = self._decoder.decode(received.frames)
                    if isinstance(message, Failed):
                        told.append(message)
                        gone.append(f"{name} failed: {message.message}")
                        break
                    if received.correlation != number or index not in wanted:
                        raise self._failed(f"{name} answered call {received.correlation}, call {number} was made")
                    answers[index] = message
            except QueueError as error:
                gone.append(f"{name} is gone: {error}")
        if gone:
            # One that fails takes others along that wait for it: whoever failed by this moment is named.
            raise self._gone("\n".join(gone), failure_class=told[0].kind if told else "Exception")
        return answers

    def _failed(self, what: str, *, failure_class: str = "Exception", late: bool = False) -> ExecutorFailure:
        """``late``: nothing but the start-up's deadline was missed."""
        self._failure = ExecutorFailure(f"rank {self._rank}: {what}", failure_class="StartupTimeout" if late else failure_class)
        return self._failure

    def _gone(self, what: str, *, failure_class: str = "Exception") -> WorkerGone:
        self._failure = WorkerGone(f"rank {self._rank}: {what}", failure_class=failure_class)
        return self._failure

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise ExecutorFailure(f"rank {self._rank}: the executor was shut down")

    def _startup_seconds(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


def _value(answer: FromWorker) -> Any:
    match answer:
        case Stepped(output=value) | Profiled(profile=value) | Returned(value=value):
            return value
        case Failed():
            raise TypeError("a failure is no answer")
