"""Whoever says what to whom: what is no message of the protocol is refused in words, whatever the bytes, and nothing else happens.

One table of all decoders that read what another process, or another machine, has sent. What they decode is judged elsewhere.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse_engine import protocol
from enginehouse_engine.executor.messages import Failed as WorkerFailed
from enginehouse_engine.executor.messages import FromWorker
from enginehouse_engine.executor.rendezvous import PeersRefused, peers_of
from enginehouse_engine.launcher import member_messages, messages
from enginehouse_engine.launcher.messages import Death, MessageError
from enginehouse_engine.message_queue import handshake
from enginehouse_engine.message_queue.codec import MessageCodec
from enginehouse_engine.message_queue.errors import QueueCorrupt
from enginehouse_operator.monitor import link

DEATH = Death("Signal", "killed", rank=0, incarnation=1, pid=7, signal=9)
WORKERS: MessageCodec[FromWorker] = MessageCodec(FromWorker)
FIT = {"rank": 0, "incarnation": 1, "maxContextLength": 1, "kvBlocks": 1}
WORKER = {"rank": 0, "index": 0, "pid": 7, "registered": True, "stage": "load"}


@dataclass(frozen=True)
class Listener:
    """``refuses`` is what its caller expects of ``decode``; ``hears`` is an example of each of its messages."""

    decode: Callable[[bytes], object]
    refuses: type[Exception]
    encode: Callable[[Any], bytes]
    hears: tuple[Any, ...]

    def sentences(self) -> list[dict[str, Any]]:
        """The examples as plain values."""
        return [msgspec.json.decode(msgspec.json.encode(message)) for message in self.hears]


LISTENERS = {
    "API server, of an engine core": Listener(
        lambda data: protocol.decode_from_core([data]),
        protocol.ProtocolError,
        msgspec.msgpack.encode,
        (protocol.Hello(1, "uid", 0, 1, "hash", 64, 5, 16, 8), protocol.Outputs((protocol.RequestOutput("r", (1,)),))),
    ),
    "engine core, of an API server": Listener(
        lambda data: protocol.decode_to_core([data]),
        protocol.ProtocolError,
        msgspec.msgpack.encode,
        (
            protocol.Welcome(1, 0),
            protocol.Refused("no"),
            protocol.Submit("r", b"", protocol.Sampling(max_tokens=1, logit_bias={5: 1.0})),
            protocol.Abort(("r",)),
        ),
    ),
    "leader, of a member": Listener(
        member_messages.decode_from_member,
        MessageError,
        msgspec.json.encode,
        (
            member_messages.Hello(1, "uid", 1, 2, 1, "Simulated", 1, 2, 1),
            member_messages.Report(False, (member_messages.WorkerState(0, 0, 7, True, "load", record={"a": 1}, exit=DEATH),)),
        ),
    ),
    "member, of its leader": Listener(
        member_messages.decode_from_leader,
        MessageError,
        msgspec.json.encode,
        (
            member_messages.Refused("no"),
            member_messages.Orders("Serving", (member_messages.RankOrder(0, "Serving", cause=DEATH, peers={"records": []}),)),
        ),
    ),
    "launcher, of a process": Listener(
        messages.decode_from_process,
        MessageError,
        msgspec.json.encode,
        (
            messages.Register(1, "worker", 0, 0, 1, 7),
            messages.Published({"queue": {"key": "k"}}),
            messages.Ready((messages.Fit(0, 1, 64, 5),), 64),
            messages.Failed("Exception", "why"),
            messages.Pong(3, 1),
        ),
    ),
    "launcher, of the monitor": Listener(
        messages.decode_from_monitor,
        MessageError,
        msgspec.json.encode,
        (messages.Drain(), messages.Abort((0,), DEATH), messages.Resize(3)),
    ),
    "monitor, of the launcher": Listener(
        link._decode,
        link.BadMessage,
        msgspec.json.encode,
        (messages.Register(1, "worker", 0, 0, 1, 7), messages.Failed("Exception", "why")),
    ),
    "queue, of a reader": Listener(
        handshake.decode_from_reader,
        QueueCorrupt,
        msgspec.msgpack.encode,
        (handshake.Attach(1, "key", "w1", 1), handshake.Acknowledge(5)),
    ),
    "reader, of its queue": Listener(
        handshake.decode_to_reader,
        QueueCorrupt,
        msgspec.msgpack.encode,
        (handshake.Welcome(1), handshake.Refused("no"), handshake.Dismissed("slow"), handshake.Closed()),
    ),
    "engine core, of a worker": Listener(
        lambda data: WORKERS.decode([bytearray(data)]),
        QueueCorrupt,
        msgspec.msgpack.encode,
        (WorkerFailed("Exception", "why"),),
    ),
}

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: not isinstance(value, int) or value >= -(2**63))


@st.composite
def sayings(draw: st.DrawFn, listener: Listener) -> bytes:
    """Bytes; or a message of the protocol with other values in its fields, or with other bytes."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=60))
    sentence = dict(draw(st.sampled_from(listener.sentences())))
    for name in draw(st.sets(st.sampled_from(sorted(sentence)))):
        sentence[name] = draw(ANYTHING)
    try:
        data = bytearray(listener.encode(sentence))
    except OverflowError:
        data = bytearray()
    for place, value in draw(st.lists(st.tuples(st.integers(0, max(0, len(data) - 1)), st.binary(max_size=3)), max_size=2)):
        data[place : place + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize("name", LISTENERS)
@settings(max_examples=100)
@given(data=st.data())
def test_what_is_no_message_is_refused_in_words(name: str, data: st.DataObject) -> None:
    listener = LISTENERS[name]
    said = data.draw(sayings(listener))
    with contextlib.suppress(listener.refuses):
        listener.decode(said)


@pytest.mark.parametrize("name", LISTENERS)
def test_a_message_that_is_nested_without_end_is_refused(name: str) -> None:
    listener = LISTENERS[name]
    for sentence in listener.sentences():
        whole = listener.encode({**sentence, "zz": None})
        # In the place of the last value, and no longer than what a reader of the message queue may say before it is let in.
        end, level = (b"}", b"[") if whole.endswith(b"}") else (b"", b"\x91")
        deep = whole.removesuffix(b"null" + end).removesuffix(b"\xc0") + level * 3500
        with pytest.raises(listener.refuses):
            listener.decode(deep)


@pytest.mark.parametrize("name", LISTENERS)
def test_a_text_that_is_no_utf8_is_refused(name: str) -> None:
    listener = LISTENERS[name]
    for sentence in listener.sentences():
        with pytest.raises(listener.refuses):
            listener.decode(listener.encode({**sentence, "type": "nothing"}).replace(b"nothing", b"noth\xffng"))


@given(records=ANYTHING)
def test_peers_are_those_of_the_rank_or_refused(records: Any) -> None:
    message = {"replicaUid": "uid", "rank": 0, "incarnation": 1, "records": json.loads(json.dumps(records))}
    with contextlib.suppress(PeersRefused):
        for peer in peers_of(message, replica_uid="uid", rank=0, incarnation=1):
            peer.queue()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("launcher, of a process", {"type": "failed", "class": "x" * 129, "message": "m"}),
        ("launcher, of a process", {"type": "ready", "ranks": [{**FIT, "maxContextLength": 2**31}], "maxContextLength": 1}),
        ("launcher, of a process", {"type": "ready", "ranks": [{**FIT, "kvBlocks": -1}], "maxContextLength": 1}),
        ("launcher, of the monitor", {"type": "abort", "ranks": [0], "cause": {"class": "Signal", "message": "m", "signal": 128}}),
        ("leader, of a member", {"type": "report", "leaving": False, "workers": [{**WORKER, "pid": 2**70}]}),
        (
            "leader, of a member",
            {
                "type": "report",
                "leaving": False,
                "workers": [{**WORKER, "exit": {"class": "Signal", "message": "m", "signal": 128}}],
            },
        ),
    ],
)
def test_what_a_row_or_an_exit_code_has_no_room_for_is_refused(name: str, said: dict[str, Any]) -> None:
    """Else the API would refuse the row, and whatever happens later with it; and 128 + 128 is no failure to who started us."""
    listener = LISTENERS[name]
    with pytest.raises(listener.refuses):
        listener.decode(json.dumps(said).encode())


@pytest.mark.parametrize("name", ["launcher, of a process", "leader, of a member"])
def test_a_record_that_may_be_too_deep_to_be_said_on_is_refused(name: str) -> None:
    """Just below what the decoder takes, a launcher that told others of it would end by that."""
    listener = LISTENERS[name]
    for levels, is_refused in ((8, False), (100, True), (985, True)):
        record = '{"a":' * levels + "0" + "}" * levels
        worker = f'{json.dumps(WORKER)[:-1]}, "record": {record}}}'
        said = {
            "launcher, of a process": f'{{"type": "published", "record": {record}}}',
            "leader, of a member": f'{{"type": "report", "leaving": false, "workers": [{worker}]}}',
        }
        with pytest.raises(listener.refuses) if is_refused else contextlib.nullcontext():
            listener.decode(said[name].encode())
