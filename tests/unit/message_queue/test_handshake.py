"""Who is let in: a table, and the real sockets with strangers at them."""

from __future__ import annotations

import re
import socket

import pytest
import zmq

from enginehouse_engine.message_queue import QueueAddress, open_local_reader, open_remote_reader
from enginehouse_engine.message_queue.errors import QueueCorrupt, ReaderRefused, ReadersMissing, WriterGone
from enginehouse_engine.message_queue.handshake import (
    HANDSHAKE_VERSION,
    Attach,
    Dismissed,
    Welcome,
    decode_from_reader,
    decode_to_reader,
    encode,
    reason_to_refuse,
)

ADDRESS = QueueAddress(queue="steps", writer="core", generation=3, key="ab" * 16, local="nobody-is-there", remote="")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"generation": 9}, ""),
        ({"version": 2}, "speaks version 1"),
        ({"key": "cd" * 16}, "another key"),
        ({"reader": "w9"}, "expects w1, w2, not 'w9'"),
        ({"reader": "w2", "generation": 4}, "with generation 4 already"),
        ({"reader": "w2", "generation": 3}, "with generation 4 already"),
        ({"reader": "w2", "generation": 5}, ""),
    ],
)
def test_who_is_let_in(changed: dict[str, object], reason: str) -> None:
    attach = Attach(**{"version": HANDSHAKE_VERSION, "key": ADDRESS.key, "reader": "w1", "generation": 1, **changed})
    found = reason_to_refuse(attach, address=ADDRESS, expected=("w1", "w2"), attached_generations={"w2": 4})
    assert reason in found
    assert bool(found) == bool(reason)


def test_readers_are_counted_by_identity(make_writer, attach) -> None:
    writer = make_writer("w1", "w2", "w3")
    for generation in (1, 2, 3):
        attach(writer, reader="w1", generation=generation, remote=generation == 2)
    attach(writer, reader="w3", remote=True)
    with pytest.raises(ReadersMissing, match=r"for w2$") as raised:
        writer.wait_until_ready(deadline_seconds=0.01)
    assert raised.value.names == ("w2",)
    attach(writer, reader="w2")
    writer.wait_until_ready(deadline_seconds=1)


def test_the_missing_are_named_with_what_became_of_them(make_writer, attach) -> None:
    writer = make_writer("w1", "w2")
    attach(writer, reader="w1").close()
    with pytest.raises(ReadersMissing, match=r"for w1, w2 \(w1 was lost: its process ended or closed its end\)"):
        writer.wait_until_ready(deadline_seconds=0.01)


@pytest.mark.parametrize("remote", [False, True])
def test_a_reader_that_is_not_expected_hears_why(make_writer, attach, remote: bool) -> None:
    writer = make_writer("w1")
    with pytest.raises(ReaderRefused, match="expects w1, not 'w2'"):
        attach(writer, reader="w2", remote=remote)
    reader = attach(writer, reader="w1", remote=remote)
    with pytest.raises(ReaderRefused, match="generation 1 already"):
        attach(writer, reader="w1", remote=remote)
    writer.send([b"still there"], deadline_seconds=1)
    assert reader.receive(deadline_seconds=10).frames == [b"still there"]


def test_an_address_whose_writer_is_gone_is_an_error_and_not_a_wait(make_writer) -> None:
    with pytest.raises(WriterGone, match="cannot reach queue 'steps' of core"):
        open_local_reader(ADDRESS, reader="w1", generation=1, deadline_seconds=60)
    with pytest.raises(ReaderRefused, match="no readers on other nodes"):
        open_remote_reader(ADDRESS, reader="w1", generation=1, deadline_seconds=60)
    writer = make_writer("w1")
    address = writer.address
    writer.close()
    with pytest.raises(WriterGone, match=rf"reader 'w1' cannot reach queue 'steps' of core .* at {re.escape(address.remote)}"):
        open_remote_reader(address, reader="w1", generation=1, deadline_seconds=60)


@pytest.mark.parametrize("opened", [open_local_reader, open_remote_reader])
def test_a_writer_that_does_not_answer_is_waited_for_until_the_deadline(make_writer, opened) -> None:
    writer = make_writer("w1")
    with pytest.raises(WriterGone, match=r"did not answer reader 'w1' in 0\.05 s"):
        opened(writer.address, reader="w1", generation=1, deadline_seconds=0.05)


def test_strangers_at_the_sockets_change_nothing(make_writer, attach) -> None:
    writer = make_writer("w1")
    reader = attach(writer, reader="w1")
    strangers = []
    endless = b"\x81\xa1a" + b"\x91" * 4000
    for garbage in (b"\xff" * 100, encode(Welcome(first_sequence=1)), b"\x80", endless, b""):
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stranger.connect(f"\0{writer.address.local}")
        if garbage:
            stranger.send(garbage)
        strangers.append(stranger)
    far = zmq.Context.instance().socket(zmq.DEALER)
    far.connect(writer.address.remote)
    for frames in ([b"\xff" * 100], [b"a", b"b"], [b""], [endless], [encode(Dismissed(reason=""))]):
        far.send_multipart(frames)
    for number in range(200):
        writer.send([str(number).encode()], deadline_seconds=10)
        assert reader.receive(deadline_seconds=10).frames == [str(number).encode()]
    for stranger in strangers:
        stranger.close()
    far.close(linger=0)
    assert writer.attached() == ["w1"]


def test_control_messages_that_cannot_be_read_are_named() -> None:
    with pytest.raises(QueueCorrupt, match="1 bytes from a reader"):
        decode_from_reader(b"\xc1")
    with pytest.raises(QueueCorrupt, match="from a writer"):
        decode_to_reader(b"\xc1")
