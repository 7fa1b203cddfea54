"""Weights from folders and GGUF files: the same model from either, and a clear word about every broken one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from enginehouse_engine.config import ConfigError
from enginehouse_engine.model.decoder import Decoder
from enginehouse_engine.model.model_config import from_folder
from enginehouse_engine.model.weights import open_weights
from enginehouse_engine.model_source import ModelNotFound

from .conftest import save_small_model

LAYER_NAMES = {
    "input_layernorm": gguf.MODEL_TENSOR.ATTN_NORM,
    "post_attention_layernorm": gguf.MODEL_TENSOR.FFN_NORM,
    "self_attn.q_proj": gguf.MODEL_TENSOR.ATTN_Q,
    "self_attn.k_proj": gguf.MODEL_TENSOR.ATTN_K,
    "self_attn.v_proj": gguf.MODEL_TENSOR.ATTN_V,
    "self_attn.o_proj": gguf.MODEL_TENSOR.ATTN_OUT,
    "self_attn.q_norm": gguf.MODEL_TENSOR.ATTN_Q_NORM,
    "self_attn.k_norm": gguf.MODEL_TENSOR.ATTN_K_NORM,
    "mlp.gate_proj": gguf.MODEL_TENSOR.FFN_GATE,
    "mlp.up_proj": gguf.MODEL_TENSOR.FFN_UP,
    "mlp.down_proj": gguf.MODEL_TENSOR.FFN_DOWN,
}


def gguf_name(name: str) -> str:
    for known, tensor in (("embed_tokens", "TOKEN_EMBD"), ("lm_head", "OUTPUT"), ("model.norm", "OUTPUT_NORM")):
        if known in name:
            return gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[tensor]] + ".weight"
    _, _, layer, rest = name.split(".", 3)
    module, _, suffix = rest.rpartition(".")
    return gguf.TENSOR_NAMES[LAYER_NAMES[module]].format(bid=layer) + "." + suffix


def permuted(weights: np.typing.NDArray[np.float32], heads: int) -> np.typing.NDArray[np.float32]:
    """What llama.cpp's converter does to query and key rows of Llama models."""
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(folder: Path, path: Path, kind: gguf.GGMLQuantizationType, **extra: Any) -> Path:
    """A folder as a GGUF file, with matrices of one type."""
    config = json.loads((folder / "config.json").read_text())
    architecture = "llama" if config["model_type"] == "mistral" else config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_eos_token_id(7)
    writer.add_eot_token_id(9)
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            array = permuted(array, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(gguf_name(name), gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), array)
    for name, value in extra.items():
        writer.add_tensor(name.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(("quantization", "tolerance"), [("F32", 0.0), ("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2)])
def test_a_gguf_file_gives_the_weights_it_was_made_from(
    kind: str, quantization: str, tolerance: float, small_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = open_weights(str(small_models[kind]))
    file = open_weights(str(write_gguf(small_models[kind], tmp_path / "m.gguf", gguf.GGMLQuantizationType[quantization])))
    for name in load_file(small_models[kind] / "model.safetensors"):
        wanted, found = folder.read(name), file.read(name).to(torch.float32)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    for field in ("layers", "hidden_size", "heads", "kv_heads", "head_dim", "vocabulary_size", "max_length", "tied_embeddings"):
        assert getattr(file.config, field) == getattr(folder.config, field)
    assert file.config.end_token_ids == (7, 9)


@pytest.mark.parametrize("quantization", ["F32", "F16", "Q8_0"])
def test_a_part_of_a_tensor_is_what_the_whole_has_there(quantization: str, small_models: dict[str, Path], tmp_path: Path) -> None:
    folder = open_weights(str(small_models["llama"]))
    file = open_weights(str(write_gguf(small_models["llama"], tmp_path / "m.gguf", gguf.GGMLQuantizationType[quantization])))
    for source in (folder, file):
        for name in load_file(small_models["llama"] / "model.safetensors"):
            whole = source.read(name)
            assert source.shape(name) == whole.shape
            assert torch.equal(source.read(name, rows=range(16, 32)), whole[16:32])
            if whole.dim() == 2:
                # Neither end is one of a block of 32.
                assert torch.equal(source.read(name, columns=range(21, 50)), whole[:, 21:50])


def test_frequency_divisors_of_a_gguf_file_reach_the_rope(small_models: dict[str, Path], tmp_path: Path) -> None:
    divisors = np.array([1, 1, 2, 4, 8, 8, 8, 8], np.float32)
    path = write_gguf(small_models["llama"], tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32, rope_freqs__weight=divisors)
    assert open_weights(str(path)).config.rope.frequency_divisors == tuple(divisors.tolist())


def test_a_sharded_folder_reads_like_a_single_file(tmp_path: Path) -> None:
    single = open_weights(str(save_small_model("qwen2", tmp_path / "single")))
    save_small_model("qwen2", tmp_path / "sharded", shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    sharded = open_weights(str(tmp_path / "sharded"))
    for name in load_file(tmp_path / "single" / "model.safetensors"):
        assert torch.equal(single.read(name), sharded.read(name))


def broken_folder(folder: Path, small_models: dict[str, Path], **config: Any) -> Path:
    shutil.copytree(small_models["llama"], folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mamba"}, "model type 'mamba' is not supported, only llama, mistral"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope scaling 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1.0}}, "rope scaling 'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "rope_parameters of .* does not say low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized by 'awq'"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers is 'many', wanted a whole number from 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, wanted a whole number from 1"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000, wanted a whole number from 1 to 4096"),
        ({"rope_scaling": "linear", "rope_parameters": None}, "rope_scaling is 'linear', wanted an object"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key heads"),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused(
    config: dict[str, Any], words: str, small_models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        open_weights(str(broken_folder(tmp_path / "m", small_models, **config)))


def load(path: Path) -> None:
    Decoder(open_weights(str(path)), dtype=torch.float32, device=torch.device("cpu"), threads=1)


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def with_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors")


def with_integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def with_an_index_that_leads_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))


def with_numbers_in_its_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 1, "b": "model.safetensors"}}))


def with_a_bad_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def without_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (without_a_tensor, "model.layers.1.mlp.up_proj.weight is not in"),
        (with_another_shape, r"model.norm.weight has the shape \(3,\), the model's configuration says \(64,\)"),
        (with_integers, "quantized weights are read from GGUF files only"),
        (cut_short, "download the model again"),
        (with_an_index_that_leads_outside, "outside the folder"),
        (with_a_bad_index, "no index of safetensors files"),
        (with_numbers_in_its_index, "names files that are no texts"),
        (without_json, "config.json cannot be read"),
    ],
)
def test_a_broken_folder_is_refused_by_what_is_wrong(
    breaks: Callable[[Path], None], words: str, small_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = broken_folder(tmp_path / "m", small_models)
    breaks(folder)
    with pytest.raises(ConfigError, match=words):
        load(folder)


def test_a_missing_model_is_told_from_a_broken_one(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelNotFound):
            open_weights(str(path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not say model_type"):
        open_weights(str(tmp_path))


@pytest.mark.parametrize("length", [0, 3, 4, 24, 60, 200, 1000, -1])
def test_a_gguf_file_cut_anywhere_is_refused(length: int, small_models: dict[str, Path], tmp_path: Path) -> None:
    path = write_gguf(small_models["llama"], tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ConfigError, match="GGUF"):
        load(path)


def test_a_gguf_file_with_a_head_of_its_own_is_loaded(small_models: dict[str, Path], tmp_path: Path) -> None:
    path = write_gguf(small_models["llama"], tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32)
    assert not open_weights(str(path)).config.tied_embeddings
    load(path)


def test_settings_of_older_and_newer_configurations_mean_the_same(small_models: dict[str, Path], tmp_path: Path) -> None:
    new = from_folder(small_models["llama"])
    folder = broken_folder(tmp_path / "m", small_models)
    config = json.loads((folder / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
    (folder / "config.json").write_text(json.dumps(config))
    assert from_folder(folder) == new


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [({"eos_token_id": 2}, None, (2,)), ({"eos_token_id": 2}, {"eos_token_id": [2, 5]}, (2, 5)), ({"eos_token_id": [3]}, {}, (3,))],
)
def test_end_tokens_come_from_the_generation_settings_first(
    config: dict[str, Any], generation: dict[str, Any] | None, ends: tuple[int, ...], small_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = broken_folder(tmp_path / "m", small_models, **config)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert from_folder(folder).end_token_ids == ends
