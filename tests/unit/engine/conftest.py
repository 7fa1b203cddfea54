"""Models for the engine's tests: SmolLM2 as a GGUF file, and small random ones of each shape with weights that say something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginehouse_engine.cores import spin_briefly

spin_briefly()

import torch  # noqa: E402 - its threads read how long they spin when it is imported
import transformers  # noqa: E402 - as above

import smollm2_reference  # noqa: E402 - as above
from localkube.model import ensure  # noqa: E402 - as above
from localkube.paths import CachePaths, cache_root  # noqa: E402 - as above

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Large enough that attention, and not the last token alone, decides what comes next.
    "initializer_range": 0.25,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
SMALL_MODELS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE),
    "llama-tied": lambda: transformers.LlamaConfig(
        **SHAPE | {"tie_word_embeddings": True, "head_dim": 32, "attention_bias": True, "mlp_bias": True},
        rope_parameters=LINEAR_ROPE,
    ),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=20),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE),
    "qwen2-window": lambda: transformers.Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=24),
}


def save_small_model(kind: str, folder: Path, *, shard_size: str = "5GB", **changes: int) -> Path:
    """A random model of fixed seed as a Hugging Face folder; ``changes`` to its shape."""
    torch.manual_seed(20)
    config = SMALL_MODELS[kind]()
    config.update(changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases and norms start as zeros and ones, which would hide that they are ignored.
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by kind."""
    return {kind: save_small_model(kind, tmp_path_factory.mktemp(kind)) for kind in SMALL_MODELS}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file, fetched when it is not there."""
    return ensure(CachePaths(cache_root()))


@pytest.fixture(scope="session")
def smollm2_float32(smollm2: Path) -> Path:
    """What transformers makes of the GGUF file, as a folder."""
    return smollm2_reference.ensure(smollm2)
