"""Pieces of text put together equal the whole; stop strings end a text wherever tokens are cut."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from enginehouse_engine.text.detokenizer import Detokenizer, StopStrings
from enginehouse_engine.text.tokenizer import Tokenizer, byte_tokenizer, load

from .conftest import TEXTS, write_sentencepiece


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(str(write_sentencepiece(tmp_path_factory.mktemp("spm") / "m.gguf")))


def _pieces(tokenizer: Tokenizer, tokens: list[int], *, continues: bool = False) -> list[str]:
    detokenizer = Detokenizer(tokenizer, continues=continues)
    return [*(detokenizer.feed([token]) for token in tokens), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_and_never_half_a_character(smollm2: Path, text: str) -> None:
    tokenizer = load(str(smollm2))
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces = _pieces(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert all("\ufffd" not in piece for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(tokens=st.lists(st.integers(0, 260), max_size=30))
@example(tokens=[0xF0, 0x9F, 0x98])
@example(tokens=[0xE2, 0x82, 0x41, 0xFF, 0xC3])
def test_any_bytes_decode_as_in_one_piece(tokens: list[int]) -> None:
    tokenizer = byte_tokenizer()
    assert "".join(_pieces(tokenizer, tokens)) == tokenizer.decode([token for token in tokens if token < 257])


@settings(max_examples=300, deadline=None)
@given(tokens=st.lists(st.integers(0, 49_151), max_size=30))
def test_any_tokens_of_smollm2_decode_as_in_one_piece(smollm2: Path, tokens: list[int]) -> None:
    tokenizer = load_once(smollm2)
    assert "".join(_pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


_loaded: dict[Path, Tokenizer] = {}


def load_once(path: Path) -> Tokenizer:
    return _loaded.setdefault(path, _loaded.get(path) or load(str(path)))


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40))
def test_sentencepiece_text_comes_back(sentencepiece: Tokenizer, text: str) -> None:
    tokens = sentencepiece.encode(text, add_special_tokens=False)
    pieces = _pieces(sentencepiece, tokens)
    assert "".join(pieces) == sentencepiece.decode(tokens)


def test_a_text_that_goes_on_keeps_the_space_before_its_first_word(sentencepiece: Tokenizer) -> None:
    tokens = sentencepiece.encode("the number", add_special_tokens=False)
    assert "".join(_pieces(sentencepiece, tokens)) == "the number"
    assert "".join(_pieces(sentencepiece, tokens, continues=True)) == " the number"


_SPACED = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        (_SPACED, "ab   a"),
        (decoders.Metaspace(prepend_scheme="first"), "ab   a"),
        (decoders.Metaspace(prepend_scheme="never"), " ab   a"),
    ],
    ids=["replaced", "metaspace", "metaspace that adds no space"],
)
def test_spaces_of_added_tokens_and_before_the_first_word_are_those_of_the_library(decoder: Any, text: str) -> None:
    vocabulary = {token: place for place, token in enumerate(["<unk>", "\u2581ab", "a"])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.decoder = decoder
    backend.add_tokens([AddedToken("\u2581" * 3, special=False, normalized=False)])
    tokenizer = Tokenizer(backend=backend)
    assert "".join(_pieces(tokenizer, [1, 3, 2])) == tokenizer.decode([1, 3, 2]) == text


def test_garbage_without_end_does_not_pile_up() -> None:
    detokenizer = Detokenizer(byte_tokenizer(), continues=False)
    assert all(detokenizer.feed([0x80]) == "\ufffd" for _ in range(100))


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stopped"),
    [
        (["END"], ["abc", "E", "N", "D", "x"], ["abc", "", "", "", ""], True),
        (["END"], ["abcE", "NOx"], ["abc", "ENOx"], False),
        (["END"], ["a EN"], ["a "], False),
        (["aab"], ["aa", "ab"], ["", "a"], True),
        (["\n\n"], ["x\n", "y\n", "\nz"], ["x", "\ny", ""], True),
        (["b", "abcX"], ["ab", "cX"], ["a", ""], True),
        (["ß"], ["gro", "ß", "e"], ["gro", "", ""], True),
        ([], ["x"], ["x"], False),
    ],
)
def test_stop_strings(stops: list[str], pieces: list[str], shown: list[str], stopped: bool) -> None:
    search = StopStrings(stops)
    assert [search.feed(piece) for piece in pieces] == shown
    assert search.stopped is stopped


def test_what_does_not_end_the_answer_is_shown_and_may_be_the_beginning_of_what_does() -> None:
    search = StopStrings(["END", "x"])
    assert search.feed("xENDxEN", may_end=False) == "xENDx"
    assert (search.feed("D"), search.stopped) == ("", True)


@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_the_answer_does_not_depend_on_how_the_text_was_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    def run(places: list[int]) -> tuple[str, bool]:
        search = StopStrings(stops)
        borders = [0, *sorted(min(place, len(text)) for place in places), len(text)]
        shown = "".join(search.feed(text[start:end]) for start, end in itertools.pairwise(borders))
        return shown + search.finish(), search.stopped

    whole = run([])
    assert run(cuts) == whole
    assert run(list(range(len(text)))) == whole
    assert not any(stop in whole[0] for stop in stops)
    assert whole[1] == any(stop in text for stop in stops)
    assert text.startswith(whole[0])
