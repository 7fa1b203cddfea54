"""The same text gives the same tokens as with ``transformers``, for each kind of vocabulary."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from enginehouse_engine.executor.simulated import END_TOKEN
from enginehouse_engine.text import gguf_tokenizer
from enginehouse_engine.text.byte_alphabet import BYTE_TO_CHARACTER
from enginehouse_engine.text.gguf_metadata import GgufError, read_metadata
from enginehouse_engine.text.tokenizer import Tokenizer, TokenizerError, byte_tokenizer, load

from .conftest import TEXTS, trained_byte_level, write_byte_level, write_sentencepiece

Tokenize = Callable[[str], list[int]]


def _reference(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    """Our tokenizer and that of transformers, by kind, of the same file."""
    folder = tmp_path_factory.mktemp("vocabularies")
    trained = trained_byte_level()
    files = {
        pre: write_byte_level(folder / f"{pre}.gguf", pre=pre, tokenizer=trained)
        for pre in ("gpt-2", "llama-bpe", "qwen2", "tekken")
    }
    files["sentencepiece"] = write_sentencepiece(folder / "sentencepiece.gguf")
    return {kind: (load(str(file)), _reference(file)) for kind, file in files.items()}


@pytest.fixture(scope="session")
def smollm2_pair(smollm2: Path) -> tuple[Tokenizer, Any]:
    reference = _reference(smollm2)
    # transformers does not know `smollm` and cuts as GPT-2 does; the model was trained with every digit cut off first
    # (its published tokenizer.json, and llama.cpp's reading of the same file). It shows in spaces before a digit.
    published = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(published)
    return load(str(smollm2)), reference


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "qwen2", "tekken", "sentencepiece"])
def test_a_text_gives_the_tokens_of_transformers(kinds: dict[str, tuple[Tokenizer, Any]], kind: str, text: str) -> None:
    ours, reference = kinds[kind]
    assert ours.encode(text, add_special_tokens=True) == reference(text).input_ids
    assert ours.encode(text, add_special_tokens=False) == reference(text, add_special_tokens=False).input_ids


# transformers gives every byte-level vocabulary a token of this text, also one whose file has none.
_NO_TOKEN_OF_THE_REFERENCE = st.text(max_size=60).filter(lambda text: "<|endoftext|>" not in text)


@settings(max_examples=300, deadline=None)
@given(text=_NO_TOKEN_OF_THE_REFERENCE)
@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "qwen2", "tekken", "sentencepiece"])
def test_any_text_gives_the_tokens_of_transformers(kinds: dict[str, tuple[Tokenizer, Any]], kind: str, text: str) -> None:
    ours, reference = kinds[kind]
    assert ours.encode(text, add_special_tokens=True) == reference(text).input_ids


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_gives_the_tokens_it_was_trained_on(smollm2_pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, reference = smollm2_pair
    assert ours.encode(text, add_special_tokens=True) == reference(text).input_ids


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_smollm2_takes_any_text(smollm2_pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, reference = smollm2_pair
    tokens = ours.encode(text, add_special_tokens=False)
    assert tokens == reference(text, add_special_tokens=False).input_ids
    # The vocabulary has no token for some control characters: they fall away, with every reader of this model.
    written = {byte for byte, character in BYTE_TO_CHARACTER.items() if ours.backend.token_to_id(character) is not None}
    assert b"".join(map(ours.token_bytes, tokens)) == bytes(byte for byte in text.encode() if byte in written)


def test_smollm2_names_its_end_token(smollm2: Path) -> None:
    tokenizer = load(str(smollm2))
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    assert tokenizer.vocab_size == 49152
    assert tokenizer.prefix == ()


def test_a_word_in_the_vocabulary_needs_no_merges_with_llama_3() -> None:
    alphabet = ["a", "b", "c", "ab", "abc"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": alphabet,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [1] * 5,
    }
    found = {
        pre: gguf_tokenizer.build({**metadata, "tokenizer.ggml.pre": pre}).encode("abc").tokens for pre in ("llama-bpe", "gpt-2")
    }
    assert found == {"llama-bpe": ["abc"], "gpt-2": ["ab", "c"]}


def test_control_tokens_outside_the_byte_alphabet_keep_their_ids() -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-r1-qwen",
        "tokenizer.ggml.tokens": ["a", "<\uff5cUser\uff5c>", "b"],
        "tokenizer.ggml.token_type": [1, 3, 1],
        "tokenizer.ggml.merges": [],
    }
    assert gguf_tokenizer.build(metadata).encode("a<\uff5cUser\uff5c>b").ids == [0, 1, 2]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"tokenizer.ggml.model": "gpt2"}, "no vocabulary"),
        ({"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"]}, "'bert'; supported"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.pre": "x"}, "tokenizer.ggml.pre is 'x'"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}, "needs as many tokenizer.ggml.scores"),
    ],
)
def test_an_unknown_kind_of_vocabulary_is_refused_by_name(metadata: dict[str, Any], words: str) -> None:
    with pytest.raises(gguf_tokenizer.UnsupportedTokenizer, match=words):
        gguf_tokenizer.build(metadata)


@given(text=st.text().filter(lambda text: "<|endoftext|>" not in text))
def test_the_byte_tokenizer_is_the_bytes(text: str) -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.encode(text, add_special_tokens=True) == list(text.encode())
    assert tokenizer.encode("a<|endoftext|>", add_special_tokens=True) == [97, END_TOKEN]
    assert tokenizer.vocab_size == 257


def test_a_hugging_face_folder_gives_its_own_tokens(tmp_path: Path, kinds: dict[str, tuple[Tokenizer, Any]]) -> None:
    from transformers import AutoTokenizer

    _, reference = kinds["llama-bpe"]
    reference.chat_template = "{{ messages[0].content }}"
    reference.save_pretrained(tmp_path)
    ours = load(str(tmp_path))
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=True) == again(text).input_ids
        assert ours.encode(text, add_special_tokens=False) == again(text, add_special_tokens=False).input_ids
    assert ours.chat_template == "{{ messages[0].content }}"
    assert ours.special_tokens["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "sentencepiece"])
@given(text=st.text(alphabet="ab \n\u00e9e\u0301日", max_size=60).map(lambda text: text * 20))
@settings(max_examples=30, deadline=None)
def test_a_text_has_no_fewer_tokens_than_its_longest_one_allows(
    kinds: dict[str, tuple[Tokenizer, Any]], kind: str, text: str
) -> None:
    tokenizer = kinds[kind][0]
    assert len(text) <= tokenizer.longest_token * len(tokenizer.encode(text, add_special_tokens=False))


def test_a_token_outside_the_byte_alphabet_is_spelled_as_the_library_spells_it(tmp_path: Path) -> None:
    described = json.loads(byte_tokenizer().backend.to_str())
    described["model"]["vocab"]["<plain token>"] = 300
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    tokenizer = load(str(tmp_path))
    assert tokenizer.token_bytes(300).decode() == tokenizer.decode([300]) == "<plain token>"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b'{"chat_template": [1]}'),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_a_broken_file_of_a_folder_is_said(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer().backend.to_str())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=f"^(the tokenizer of )?{re.escape(str(tmp_path))}"):
        load(str(tmp_path))


@pytest.mark.parametrize("merges", [["ab"], ["x y"]])
def test_broken_merges_of_a_gguf_file_are_said(tmp_path: Path, merges: list[str]) -> None:
    writer = gguf.GGUFWriter(tmp_path / "broken.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(TokenizerError, match="cannot be used: "):
        load(str(tmp_path / "broken.gguf"))


def test_a_folder_without_a_tokenizer_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"no tokenizer.json \(found: tokenizer.model\)"):
        load(str(tmp_path))


def test_the_whole_metadata_is_read_as_the_reference_reader_reads_it(smollm2: Path) -> None:
    import gguf

    ours = read_metadata(smollm2)
    reference = {name: value.contents() for name, value in gguf.GGUFReader(smollm2).fields.items() if not name.startswith("GGUF.")}
    assert ours.keys() == reference.keys()
    assert all(ours[name] == reference[name] for name in ours)


@settings(max_examples=200)
@given(cut=st.integers(0, 400), place=st.integers(4, 400), value=st.integers(0, 255))
def test_a_damaged_file_is_an_error_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged", numbered=True)
    whole = bytearray(write_byte_level(folder / "whole.gguf", pre="gpt-2", tokenizer=_TRAINED).read_bytes())
    whole[min(place, len(whole) - 1)] = value
    file = folder / "damaged.gguf"
    file.write_bytes(whole[: len(whole) - cut * 40])
    with contextlib.suppress(GgufError):
        read_metadata(file)


_TRAINED = trained_byte_level()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(TokenizerError, match="no GGUF file"):
        load(str(file))
