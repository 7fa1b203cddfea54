"""What arrives between API server and engine core is decoded or refused with words, whatever the bytes."""

from __future__ import annotations

from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine.protocol import (
    Abort,
    FromCore,
    Hello,
    Outputs,
    PromptLogprobs,
    ProtocolError,
    Refused,
    RequestOutput,
    Sampling,
    StepStats,
    Submit,
    ToCore,
    TokenLogprobs,
    Welcome,
    decode_from_core,
    decode_to_core,
    encode,
    pack_tokens,
    unpack_prompt_logprobs,
    unpack_tokens,
)


@given(frames=st.lists(st.binary(max_size=64), max_size=3))
def test_foreign_bytes_are_a_protocol_error_and_nothing_else(frames: list[bytes]) -> None:
    for decode in (decode_from_core, decode_to_core):
        with pytest.raises(ProtocolError):
            decode(frames)


def test_broken_utf8_in_a_known_message_is_a_protocol_error() -> None:
    broken = encode(Abort(("abc",))).replace(b"abc", b"\xff\xff\xff")
    with pytest.raises(ProtocolError, match="undecodable message"):
        decode_to_core([broken])


def test_a_message_has_one_frame_and_says_how_many_came() -> None:
    with pytest.raises(ProtocolError, match="found 2"):
        decode_to_core([b"", encode(Abort(()))])


def test_token_ids_come_in_whole_numbers() -> None:
    with pytest.raises(ProtocolError, match="found 5 bytes"):
        unpack_tokens(b"12345")


def test_a_submit_survives_the_wire() -> None:
    message = Submit("r", b"\1\0\0\0", Sampling(max_tokens=3, logit_bias={5: -1.0}, stop_token_ids=(7,)))
    assert decode_to_core([encode(message)]) == message


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, "uid", 0, 1, "hash", 64, 5, 16, 8),
        Outputs((RequestOutput("r", (1,)),), StepStats(running=1)),
        Welcome(1, 0),
        Refused("no"),
        Submit("r", pack_tokens([1]), Sampling(max_tokens=1)),
        Abort(("r",)),
    ],
)
def test_fields_of_a_later_version_are_ignored_in_every_message(message: FromCore | ToCore) -> None:
    later = msgspec.msgpack.encode({**msgspec.msgpack.decode(encode(message)), "added": {"later": [1]}})
    decode = decode_from_core if isinstance(message, FromCore) else decode_to_core
    assert decode([later]) == message


@pytest.mark.parametrize("alternatives", [0, 2])
def test_log_probabilities_of_a_prompt_belong_to_its_tokens(alternatives: int) -> None:
    packed = PromptLogprobs(
        logprobs=array("f", [-1.0, -2.0]).tobytes(),
        alternatives=alternatives,
        top_tokens=pack_tokens([6, 5, 8, 9][: 2 * alternatives]),
        top_logprobs=array("f", [-0.5, -1.0, -0.25, -1.5][: 2 * alternatives]).tobytes(),
    )
    (message,) = decode_to(packed).outputs
    assert message.prompt_logprobs == packed
    assert unpack_prompt_logprobs(packed, [4, 5, 7]) == [
        TokenLogprobs(5, -1.0, (6, 5)[:alternatives], (-0.5, -1.0)[:alternatives]),
        TokenLogprobs(7, -2.0, (8, 9)[:alternatives], (-0.25, -1.5)[:alternatives]),
    ]
    with pytest.raises(ProtocolError, match="of 3 tokens"):
        unpack_prompt_logprobs(packed, [4, 5, 7, 8])


def decode_to(packed: PromptLogprobs) -> Outputs:
    """Over the wire."""
    message = decode_from_core([encode(Outputs((RequestOutput("r", prompt_logprobs=packed),)))])
    assert isinstance(message, Outputs)
    return message
