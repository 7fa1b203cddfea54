"""The API server's side of the sockets to the engine cores.

Binds a ROUTER socket, lets cores in by their Hello, hands sequences to one of them and its outputs to whoever waits.
Invariant: a sequence is at exactly one rank; when that rank goes, the sequence's request fails with an error that clients may
retry. Nothing here blocks: the event loop watches the socket's descriptor (6 us for each message, 21 us with zmq.asyncio).
Does not know HTTP or text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import zmq

from enginehouse_engine.api import errors
from enginehouse_engine.api.answer import Answer
from enginehouse_engine.api.ranks import Rank, Ranks, RankState
from enginehouse_engine.config import EngineConfig
from enginehouse_engine.protocol import (
    PROTOCOL_VERSION,
    Abort,
    Hello,
    Outputs,
    ProtocolError,
    Refused,
    Submit,
    ToCore,
    Welcome,
    decode_from_core,
    encode,
)

logger = logging.getLogger("enginehouse.api")

_BURST: Final = 128
"""Messages taken in one turn of the event loop: a core that floods must not keep HTTP from its turn."""


class FrontEnd:
    """``on_change`` is called after each rank that came into service or left it, or has nothing to do any more before it leaves."""

    def __init__(self, config: EngineConfig, *, index: int, directory: Path, on_change: Callable[[], None]) -> None:
        """Binds in ``directory``, which only this user may enter; the event loop must be running."""
        self.ranks = Ranks(config)
        self._index = index
        self._on_change = on_change
        self._sequences: dict[str, tuple[Answer, int, Rank]] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # A message to a core that is gone must be an error here, not silence; what a core leaves lying is bounded by its requests.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.endpoint = f"ipc://{directory / f'front-end-{index}.sock'}"
        self._socket.bind(self.endpoint)
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._descriptor, self._receive)
        self._turn: asyncio.Handle | None = None

    def submit(self, requests: Sequence[Submit]) -> Answer:
        """Hand sequences to cores. Raises ApiError when no rank serves, or none takes more: then none of them was handed over."""
        if self.ranks.are_full:
            raise errors.overloaded()
        answer = Answer([request.request_id for request in requests])
        try:
            for index, request in enumerate(requests):
                self._submit(answer, index, request)
        except errors.ApiError:
            self.abort(answer.request_ids)
            raise
        return answer

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget sequences, here and in their cores; those that have ended are ignored."""
        by_rank: dict[bytes, tuple[Rank, list[str]]] = {}
        for request_id in request_ids:
            if (known := self._sequences.pop(request_id, None)) is not None:
                rank = known[2]
                rank.in_flight.discard(request_id)
                by_rank.setdefault(rank.identity, (rank, []))[1].append(request_id)
        for rank, ids in by_rank.values():
            self._send(rank, Abort(tuple(ids)))
            self._done(rank)

    def told(self, states: Sequence[RankState]) -> None:
        """The launcher's word on all ranks: the requests of an incarnation that is over fail now."""
        # What a core sent before it died is as good as ever.
        self._receive()
        for rank in self.ranks.told(states):
            self._lose(rank, f"the engine core of rank {rank.hello.rank} is gone")

    def fail_all(self, failure: errors.ApiError) -> None:
        """Every request under way ends with ``failure``; the cores forget them."""
        answers = [answer for answer, _, _ in self._sequences.values()]
        self.abort(list(self._sequences))
        for answer in answers:
            answer.fail(failure)

    def close(self) -> None:
        """No message is sent or received any more."""
        self._loop.remove_reader(self._descriptor)
        if self._turn is not None:
            self._turn.cancel()
        self._socket.close()
        self._context.term()

    def _submit(self, answer: Answer, index: int, request: Submit) -> None:
        while (rank := self.ranks.choose(request.prompt)) is not None:
            if self._send(rank, request):
                rank.in_flight.add(request.request_id)
                self._sequences[request.request_id] = (answer, index, rank)
                return
        raise errors.unavailable("no engine core is serving")

    def _send(self, rank: Rank, message: ToCore) -> bool:
        """Whether the core is there; if not, it is out of service from now on."""
        try:
            self._socket.send_multipart((rank.identity, encode(message)), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._lose(rank, f"the engine core of rank {rank.hello.rank} is gone ({error})")
            return False
        finally:
            # Sending may have taken the one wake-up that the descriptor gives for what has arrived meanwhile.
            self._look_again()
        return True

    def _lose(self, rank: Rank, reason: str) -> None:
        self.ranks.remove(rank)
        logger.warning("%s; %d of its sequences fail", reason, len(rank.in_flight))
        for request_id in rank.in_flight:
            if (known := self._sequences.pop(request_id, None)) is not None:
                known[0].fail(errors.unavailable(f"{reason}; the request may be sent again", code="engine_core_lost"))
        rank.in_flight.clear()
        self._on_change()

    def _look_again(self) -> None:
        if self._turn is None:
            self._turn = self._loop.call_soon(self._receive)

    def _receive(self) -> None:
        """Everything that has arrived, up to a bound: the descriptor only wakes us for what comes after the socket was empty."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        for _ in range(_BURST):
            try:
                identity, *payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(identity, payload)
        self._look_again()

    def _take(self, identity: bytes, payload: list[bytes]) -> None:
        try:
            message = decode_from_core(payload)
        except ProtocolError as error:
            self._refuse(identity, str(error))
            if (rank := self.ranks.by_identity(identity)) is not None:
                self._lose(rank, f"the engine core of rank {rank.hello.rank} broke the protocol: {error}")
            return
        if isinstance(message, Hello):
            self._meet(identity, message)
        elif (rank := self.ranks.by_identity(identity)) is None:
            if not self.ranks.is_over(identity):
                self._refuse(identity, "the first message of a core is its hello, found outputs")
        else:
            self._deliver(rank, message)

    def _meet(self, identity: bytes, hello: Hello) -> None:
        if reason := self.ranks.why_refused(identity, hello):
            self._refuse(identity, reason)
            return
        if (predecessor := self.ranks.admit(identity, hello)) is not None:
            self._lose(predecessor, f"incarnation {hello.incarnation} of rank {hello.rank} has taken the place of the one before")
        if (rank := self.ranks.by_identity(identity)) is not None:
            self._send(rank, Welcome(version=PROTOCOL_VERSION, front_end=self._index))
        logger.info("rank %d serves, context length %d tokens", hello.rank, hello.max_context_length)
        self._on_change()

    def _refuse(self, identity: bytes, reason: str) -> None:
        logger.error("the engine core %r was refused: %s", identity, reason)
        try:
            self._socket.send_multipart((identity, encode(Refused(reason))), zmq.NOBLOCK)
        except zmq.ZMQError:
            logger.info("the refused engine core %r has left already", identity)

    def _deliver(self, rank: Rank, message: Outputs) -> None:
        if message.stats is not None:
            rank.update(message.stats)
        for output in message.outputs:
            known = self._sequences.get(output.request_id)
            # An answer to a request that was aborted meanwhile may still be on its way.
            if known is None or known[2] is not rank:
                continue
            answer, index, _ = known
            if output.finish_reason is not None:
                del self._sequences[output.request_id]
                rank.in_flight.discard(output.request_id)
            answer.push(index, output)
        self._done(rank)

    def _done(self, rank: Rank) -> None:
        """Sequences of it have ended: were they the last that it was to end?"""
        if not rank.in_flight and self.ranks.is_leaving(rank):
            self._on_change()
