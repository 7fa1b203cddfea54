"""Messages with arrays over both transports, and a walk through what comes out: nothing points into a transport."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginehouse_engine.executor import messages
from enginehouse_engine.executor.contract import (
    SamplingInput,
    ScoringInput,
    ScoringOutput,
    StepInput,
    StepOutput,
    WorkerProfile,
)
from enginehouse_engine.executor.messages import Failed, FromWorker, Profiled, Returned, Step, Stepped, ToWorker
from enginehouse_engine.message_queue import MessageCodec, Reader
from enginehouse_engine.message_queue.errors import QueueCorrupt
from enginehouse_engine.message_queue.local_reader import LocalReader
from enginehouse_engine.protocol import Outputs, PromptLogprobs, RequestOutput, TokenLogprobs

Int32s = NDArray[np.int32]


class Call(msgspec.Struct, tag="call"):
    """A message like an executor's, with arguments of no declared type."""

    method: str
    arguments: tuple[Any, ...]


def floats(*shape: int) -> NDArray[np.float32]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


SAMPLING = SamplingInput(
    **{
        name: np.arange(3).astype(dtype)
        for name, dtype in {
            "temperature": np.float32,
            "top_k": np.int32,
            "top_p": np.float32,
            "min_p": np.float32,
            "uniform": np.float64,
            "presence_penalty": np.float32,
            "frequency_penalty": np.float32,
            "repetition_penalty": np.float32,
            "history_rows": np.int32,
            "history_tokens": np.int32,
            "history_generated": np.bool_,
            "bias_rows": np.int32,
            "bias_tokens": np.int32,
            "bias_values": np.float32,
        }.items()
    },
    logprobs=5,
)
STEP = StepInput(
    tokens=np.arange(7, dtype=np.int32),
    query_lengths=np.array([4, 3], np.int32),
    context_lengths=np.array([40, 30], np.int32),
    block_tables=np.arange(40_000, dtype=np.int32).reshape(2, -1),
    choosing=2,
    sampling=SAMPLING,
    scoring=ScoringInput(rows=np.arange(3, dtype=np.int32), followers=np.arange(3, dtype=np.int32), alternatives=2),
)
PROFILE = WorkerProfile(available_bytes=-1, block_bytes=2, model_max_length=3, vocabulary_size=4, end_token_ids=(5, 6))
OUTPUT = StepOutput(
    tokens=np.array([3, 4], np.int32),
    logprobs=floats(2),
    top_tokens=np.arange(40, dtype=np.int32).reshape(2, 20),
    top_logprobs=floats(2, 20),
    scoring=ScoringOutput(
        logprobs=floats(300), top_tokens=np.arange(6000, dtype=np.int32).reshape(300, 20), top_logprobs=floats(300, 20)
    ),
)
MESSAGES: list[tuple[Any, Any]] = [
    (StepInput, STEP),
    (StepInput, dataclasses.replace(STEP, sampling=None, scoring=None, block_tables=np.zeros((0, 5), np.int32))),
    (StepOutput, OUTPUT),
    (StepOutput, StepOutput(tokens=np.zeros(0, np.int32))),
    (WorkerProfile, PROFILE),
    (
        Outputs,
        Outputs(
            outputs=(
                RequestOutput(
                    "r",
                    tokens=(1, 2),
                    logprobs=(TokenLogprobs(1, -0.5, (1, 2), (-0.5, -1.5)),),
                    prompt_logprobs=PromptLogprobs(bytes(8), 1, bytes(range(8)), bytes(8)),
                ),
            )
        ),
    ),
    (ToWorker, Step(STEP)),
    (ToWorker, messages.Call("initialize_kv_cache", (7, floats(3), "text"))),
    (FromWorker, Stepped(OUTPUT)),
    (FromWorker, Profiled(PROFILE)),
    (FromWorker, Returned({"arrays": [floats(2, 3)]})),
    (FromWorker, Failed("Exception", "Traceback ...")),
    (Call, Call("prompt_logprobs", ({"r": floats(300, 21)}, [floats(2).T, floats(4, 4)[::2, ::-1]], "text", b"bytes", None))),
]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if dataclasses.is_dataclass(left) or isinstance(left, msgspec.Struct):
        names = [f.name for f in dataclasses.fields(left)] if dataclasses.is_dataclass(left) else left.__struct_fields__
        return type(left) is type(right) and all(same(getattr(left, name), getattr(right, name)) for name in names)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def buffers(root: object) -> Iterator[object]:
    """Every object with memory of its own that can be reached: arrays, what they are views of, bytes in any form."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        if isinstance(value, np.ndarray):
            yield value
            stack.append(value.base)
        elif isinstance(value, memoryview):
            yield value
            stack.append(value.obj)
        elif isinstance(value, bytes | bytearray):
            yield value
        elif dataclasses.is_dataclass(value):
            stack += [getattr(value, f.name) for f in dataclasses.fields(value)]
        else:
            stack += gc.get_referents(value)


def shared_ranges() -> list[tuple[int, int]]:
    """What this process has mapped of shared memory."""
    with open("/proc/self/maps") as maps:
        lines = [line.split() for line in maps if "/dev/shm/" in line]
    return [(int(start, 16), int(end, 16)) for start, end in (line[0].split("-") for line in lines)]


def borrowed(root: object) -> list[object]:
    """What in the graph is not ours: in shared memory, read-only, or a view of anything but a bytearray."""
    ranges = shared_ranges()
    found = []
    for buffer in buffers(root):
        flat = np.frombuffer(buffer, np.uint8) if not isinstance(buffer, np.ndarray) else buffer
        address = flat.__array_interface__["data"][0]
        inside = any(start <= address < end for start, end in ranges)
        if isinstance(buffer, np.ndarray):
            alien = not buffer.flags.writeable
        else:
            alien = isinstance(buffer, memoryview) and not isinstance(buffer.obj, bytearray)
        if inside or alien:
            found.append(buffer)
    return found


@pytest.fixture(params=[False, True], ids=["this node", "another node"])
def remote(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize(("kind", "message"), MESSAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_decoded_messages_own_their_memory(kind, message, remote, make_writer, attach, thread) -> None:
    codec: MessageCodec[Any] = MessageCodec(kind)
    writer = make_writer("w")
    reader: Reader = attach(writer, remote=remote)
    frames = codec.encode(message)
    # The largest is larger than the ring: it streams to a reader that reads meanwhile.
    receiving = thread.submit(reader.receive, deadline_seconds=10)
    writer.send(frames, correlation=9, deadline_seconds=10)
    received = receiving.result()
    assert received.correlation == 9
    decoded = codec.decode(received.frames)
    assert same(decoded, message)
    assert borrowed(decoded) == []
    assert borrowed(received) == []
    # It stays what it is when the transport is reused and gone.
    del received
    for _ in range(5):
        writer.send([b"\xee" * 15_000], deadline_seconds=10)
        reader.receive(deadline_seconds=10)
    reader.close()
    writer.close()
    assert same(decoded, message)


def test_the_walk_finds_a_view_of_the_ring(make_writer, attach) -> None:
    writer = make_writer("w")
    reader = attach(writer)
    assert isinstance(reader, LocalReader)
    view = np.frombuffer(reader._records[:16], np.int32)
    assert borrowed({"deep": [dataclasses.replace(MESSAGES[3][1], tokens=view)]})
    del view


def test_the_array_of_the_sender_may_change_after_sending(remote, make_writer, attach) -> None:
    codec: MessageCodec[StepOutput] = MessageCodec(StepOutput)
    writer = make_writer("w")
    reader = attach(writer, remote=remote)
    tokens = np.arange(10_000, dtype=np.int32)
    writer.send(codec.encode(StepOutput(tokens=tokens)), deadline_seconds=10)
    tokens[:] = -1
    assert np.array_equal(codec.decode(reader.receive(deadline_seconds=10).frames).tokens, np.arange(10_000))


def test_both_transports_carry_the_same_bytes(make_writer, attach) -> None:
    writer = make_writer("near", "far", ring_bytes=1 << 20)
    near, far = attach(writer, reader="near"), attach(writer, reader="far", remote=True)
    for kind, message in MESSAGES:
        writer.send(MessageCodec(kind).encode(message), correlation=7, deadline_seconds=10)
        left, right = near.receive(deadline_seconds=10), far.receive(deadline_seconds=10)
        assert (left.sequence, left.correlation, left.frames) == (right.sequence, right.correlation, right.frames)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (object(), "object"),
        (np.array(["a", None], object), "an array of object"),
        (np.zeros(2, "M8[s]"), "datetime64"),
        (len, "builtin"),
    ],
)
def test_what_is_no_data_is_not_sent(value: object, found: str) -> None:
    with pytest.raises(TypeError, match=found):
        MessageCodec(Call).encode(Call("m", (value,)))


def test_an_array_of_another_type_than_declared_is_refused() -> None:
    other = MessageCodec(Any).encode({"tokens": np.zeros(2, np.float64)})
    with pytest.raises(QueueCorrupt, match="int32 was expected, found float64"):
        MessageCodec(StepOutput).decode([bytearray(frame) for frame in other])
    with pytest.raises(QueueCorrupt, match="an array was expected"):
        MessageCodec(StepOutput).decode([bytearray(msgspec.msgpack.encode({"tokens": [1, 2]}))])


@given(st.data())
def test_damaged_frames_are_refused_or_give_owned_data(data: st.DataObject) -> None:
    codec: MessageCodec[StepOutput] = MessageCodec(StepOutput)
    message: StepOutput = MESSAGES[2][1]
    frames = [bytearray(frame) for frame in codec.encode(message)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[data.draw(st.integers(0, len(frames) - 1))]
        if data.draw(st.booleans()) and frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        else:
            frames.pop() if data.draw(st.booleans()) and len(frames) > 1 else frame.pop()
    try:
        decoded = codec.decode(frames)
    except QueueCorrupt:
        return
    assert borrowed(decoded) == []
