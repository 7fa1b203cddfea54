"""Damaged model files of every kind: the engine loads them or refuses them in words, and never takes much memory to find out."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginehouse_engine.config import ConfigError
from enginehouse_engine.model.decoder import Decoder
from enginehouse_engine.model.weights import open_weights

from .test_weights import write_gguf

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPARE_BYTES = 512 * 1024 * 1024
"""What loading may take at most: the models here have less than a megabyte."""
WORDS = [0, 1, 3, 255, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Whoever asks for much more than there is now gets a MemoryError, which no test here lets pass."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + SPARE_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def load(path: Path) -> None:
    with little_memory():
        Decoder(open_weights(str(path)), dtype=torch.float32, device=torch.device("cpu"), threads=1)


def load_or_refuse(path: Path) -> None:
    with contextlib.suppress(ConfigError):
        load(path)


@st.composite
def damages(draw: st.DrawFn, *, within: int) -> Callable[[bytearray], None]:
    """Some bytes changed, a word set to a value that may be a length, or the end cut off."""
    changes = draw(st.lists(st.tuples(st.integers(0, within - 1), st.binary(min_size=1, max_size=4)), max_size=3))
    words = draw(st.lists(st.tuples(st.integers(0, within - 1), st.sampled_from(WORDS)), max_size=2))
    kept = draw(st.none() | st.integers(0, within))

    def damage(data: bytearray) -> None:
        for place, value in [*changes, *((place, struct.pack("<Q", word)) for place, word in words)]:
            data[place : place + len(value)] = value
        if kept is not None:
            del data[kept:]

    return damage


@pytest.fixture(scope="module")
def gguf_file(small_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    divisors = np.ones(8, np.float32)
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_gguf(small_models["llama"], path, gguf.GGMLQuantizationType.Q8_0, rope_freqs__weight=divisors)


UINT32, INT32, FLOAT32 = 4, 5, 6


def gguf_field(name: str, kind: int, value: bytes, *, instead_of: str = "") -> Callable[[bytearray], None]:
    """Another type and value for a field that has 32 bits, or a field of another name in its place."""

    def change(data: bytearray) -> None:
        old, new = (instead_of or name).encode(), name.encode()
        place = data.index(old)
        data[place : place + len(old) + 8] = new + struct.pack("<I", kind) + value

    return change


def gguf_word(after: str, offset: int, word: int, width: str = "<I") -> Callable[[bytearray], None]:
    """A number in the directory, counted from the end of a tensor's name; or from the file's start."""

    def change(data: bytearray) -> None:
        place = data.index(after.encode()) + len(after) + offset if after else offset
        data[place : place + struct.calcsize(width)] = struct.pack(width, word)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (gguf_field("llama.context_length", FLOAT32, struct.pack("<f", 0.5)), "llama.context_length is 0.5, wanted a whole number"),
        (gguf_field("llama.rope.freq_base", INT32, struct.pack("<i", -1)), "llama.rope.freq_base is -1, wanted a number above 0"),
        (gguf_field("general.alignment", UINT32, bytes(4), instead_of="llama.block_count"), "general.alignment is 0, wanted"),
        (
            gguf_field("general.alignment", UINT32, struct.pack("<I", 48), instead_of="llama.block_count"),
            "is 48, wanted a power of two",
        ),
        (gguf_field("llama.block_count", UINT32, b"\xff" * 4), "llama.block_count is 4294967295, wanted a whole number from 1 to"),
        (gguf_field("llama.block_count", 13, bytes(4)), "unknown value type 13"),
        (gguf_word("", 8, 1 << 40, "<Q"), "wanted at most 65536 tensors, found 1099511627776"),
        (gguf_word("", 16, 1 << 40, "<Q"), "GGUF"),
        (gguf_word("token_embd.weight", 0, 5), "has 5 dimensions, wanted 1 to 4"),
        (gguf_word("token_embd.weight", 12, 0, "<Q"), "has no elements"),
        (gguf_word("token_embd.weight", 12, 1 << 40, "<Q"), "of a file of"),
        (gguf_word("token_embd.weight", 20, 250), "'token_embd.weight' is quantized by method 250, which is not known"),
        (gguf_word("token_embd.weight", 20, 27), "has type I64, which cannot be dequantized|of a file of"),
        (gguf_word("token_embd.weight", 24, 1 << 63, "<Q"), "of a file of"),
        (gguf_word("blk.1.attn_q.weight", 12, 61, "<Q"), r"q_proj.weight has the shape \(61, 64\)"),
    ],
)
def test_what_is_wrong_in_a_gguf_file_is_said(
    change: Callable[[bytearray], None], words: str, gguf_file: Path, tmp_path: Path
) -> None:
    data = bytearray(gguf_file.read_bytes())
    change(data)
    path = tmp_path / "wrong.gguf"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        load(path)


@FUZZ
@given(damage=damages(within=3000))
def test_a_damaged_gguf_file_is_loaded_or_refused(damage: Callable[[bytearray], None], gguf_file: Path, tmp_path: Path) -> None:
    data = bytearray(gguf_file.read_bytes())
    damage(data)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    load_or_refuse(path)


@FUZZ
@given(damage=damages(within=3000))
def test_a_damaged_safetensors_file_is_loaded_or_refused(
    damage: Callable[[bytearray], None], small_models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(small_models["qwen2"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    damage(data)
    path.unlink()
    path.write_bytes(data)
    load_or_refuse(tmp_path)


def test_a_type_that_torch_does_not_have_is_refused(small_models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(small_models["qwen2"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["dtype"] = "F6_E2M3"
    saved_bytes = 64 * 4 - 64 * 6 // 8
    start = header["model.norm.weight"]["data_offsets"][0]
    for field in header.values():
        if "data_offsets" in field:
            first, last = field["data_offsets"]
            field["data_offsets"] = [first - saved_bytes * (first > start), last - saved_bytes * (last > start)]
    text = json.dumps(header).encode()
    path.unlink()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length + saved_bytes :])
    with pytest.raises(ConfigError, match=r"model\.norm\.weight of .* cannot be read: Dtype not understood"):
        load(tmp_path)


ODD_NUMBERS = st.sampled_from(
    [-1, 0, 1, 2, 3, 7, 1 << 31, 1 << 40, 10**30, 10**400, 0.0, 0.5, -1.5, 1e308, float("inf"), float("nan")]
)
ODD_VALUES = st.recursive(
    st.none() | st.booleans() | ODD_NUMBERS | st.sampled_from(["", "1", "llama3", "linear", "yarn", "factor", "sliding_attention"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["rope_type", "factor", "content"]), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        "model_type",
        "hidden_act",
        "quantization_config",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "partial_rotary_factor",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "tie_word_embeddings",
        "eos_token_id",
    ]
)
ROPE_FIELDS = st.sampled_from(
    ["rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
)


@FUZZ
@given(
    kind=st.sampled_from(["llama", "mistral", "qwen2-window", "qwen3"]),
    changes=st.dictionaries(FIELDS, ODD_VALUES, max_size=2),
    rope=st.dictionaries(ROPE_FIELDS, ODD_VALUES, max_size=2),
    ends=st.none() | ODD_VALUES,
)
def test_a_configuration_of_odd_values_is_loaded_or_refused(
    kind: str, changes: dict[str, Any], rope: dict[str, Any], ends: Any, small_models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(small_models[kind], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"].update(rope)
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    load_or_refuse(tmp_path)
