"""The text that people read in the record of a death."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine.launcher.evidence import MOST_CHARACTERS, evidence, last_lines

DUMP = b"""a line of the log
Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 1045 in _bootstrap_inner
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f0000000002 (most recent call first):
  File "/site-packages/torch/distributed/distributed_c10d.py", line 4181 in all_reduce
  File "/app/enginehouse_engine/executor/serving.py", line 120 in serve
  File "<frozen runpy>", line 88 in _run_code
"""


def test_first_the_last_lines_of_the_dead_then_where_each_survivor_was() -> None:
    main = "distributed/distributed_c10d.py:4181 all_reduce < executor/serving.py:120 serve < <frozen runpy>:88 _run_code"
    other = "python3.11/threading.py:1045 _bootstrap_inner < python3.11/threading.py:1002 _bootstrap"
    text = evidence("worker 1", last=b"loading\nwhat(): no\n", stacks={"worker 0": DUMP, "worker 2": b""})
    assert text.splitlines() == [
        "last lines of worker 1:",
        "loading",
        "what(): no",
        f"worker 0 was at {main}; another thread at {other}",
        "worker 2 has not told where it was",
    ]


def test_who_wrote_nothing_has_no_last_lines_and_nobody_to_ask_leaves_nothing() -> None:
    assert evidence("worker 1", last=b"\n \n", stacks={}) == ""
    assert evidence("worker 1", last=b"", stacks={"worker 0": DUMP}).startswith("worker 0 was at ")


def test_only_what_a_person_can_read_is_kept() -> None:
    log = b"\x1b[31mred\x1b[0m\n10%\r20%\r30%\nwindows\r\n\x00nul\x07\n\xff\xfe\nExtension modules: a, b (total: 2)\n"
    assert last_lines(log) == "red\n30%\nwindows\nnul\n��"


def test_what_a_terminal_would_obey_is_in_no_part_of_it() -> None:
    """A process may write between the lines of its stacks, and what it wrote may look like one of them."""
    dump = DUMP + b'  File "\x1b[2Ja\x07.py", line 3 in f\xc2\x9b31m\n'
    text = evidence("worker 1", last=b"a\xc2\x9b31mb\n", stacks={"worker 0": dump})
    assert [character for character in text if unicodedata.category(character) == "Cc" and character != "\n"] == []


def test_of_many_lines_the_last_are_kept() -> None:
    lines = [f"line {number}" for number in range(100)]
    assert last_lines("\n".join(lines).encode()) == "\n".join(lines[60:])


@given(st.text(max_size=9000), st.dictionaries(st.text(max_size=40), st.binary(max_size=4000), max_size=12))
def test_it_always_fits_and_keeps_the_end_of_the_lines(text: str, stacks: dict[str, bytes]) -> None:
    made = evidence("somebody", last=text.encode(), stacks=stacks | {"worker 0": DUMP})
    assert len(made) <= MOST_CHARACTERS
    lines = last_lines(text.encode())
    assert lines[-100:] in made


def test_many_survivors_share_the_room_and_leave_half_of_it_to_the_dead() -> None:
    text = evidence("worker 99", last=b"x\n" * 20_000 + b"y" * 5000, stacks={f"worker {number}": DUMP for number in range(64)})
    assert len(text) <= MOST_CHARACTERS
    assert all(f"\nworker {number} was at" in text for number in range(64))
    assert text.count("y") > 1900
