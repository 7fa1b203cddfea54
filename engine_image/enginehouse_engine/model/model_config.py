"""What a decoder looks like: one frozen value, read from a Hugging Face ``config.json`` or from GGUF metadata.

Invariant: everything the forward pass depends on is here, and a model that would be computed wrongly is refused by name instead.
Does not read weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from enginehouse_engine.config import ConfigError

ARCHITECTURES: Final = ("llama", "mistral", "qwen2", "qwen3")
_SCALINGS: Final = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding: base and, for stretched models, how the frequencies are scaled."""

    theta: float
    scaling: str = "default"
    """``default``, ``linear`` or ``llama3``."""
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 1.0
    original_max_length: int = 0
    frequency_divisors: tuple[float, ...] = ()
    """One per frequency, as GGUF files carry them instead of a formula; empty = none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes in elements. ``windows`` has one entry per layer: tokens a position sees with itself, None = all before it."""

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary_size: int
    max_length: int
    norm_epsilon: float
    rope: Rope
    tied_embeddings: bool
    windows: tuple[int | None, ...]
    end_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in (
            "layers",
            "hidden_size",
            "intermediate_size",
            "heads",
            "kv_heads",
            "head_dim",
            "vocabulary_size",
            "max_length",
        ):
            if getattr(self, field) < 1:
                raise ConfigError(f"the model's {field} is at least 1, found {getattr(self, field)}: its configuration is broken")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ConfigError(
                f"{self.heads} query heads cannot share {self.kv_heads} key heads of {self.head_dim} dimensions evenly: the "
                "model's configuration is broken"
            )

    @property
    def normalizes_heads(self) -> bool:
        """Qwen3 normalizes each query and key head before it is rotated."""
        return self.architecture == "qwen3"


def from_folder(folder: Path) -> ModelConfig:
    """Read ``config.json`` and, where there is one, ``generation_config.json``. Raises ConfigError."""
    config = _read_json(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.exists() else {}
    try:
        return _from_hugging_face(config, generation)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{folder / 'config.json'} cannot be used: {type(error).__name__}: {error}") from error


def _from_hugging_face(config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    architecture = _known_architecture(str(config.get("model_type")))
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"activation {activation!r} is not supported: the decoder family uses silu")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown")
        raise ConfigError(f"weights quantized by {method!r} are not supported: use the unquantized model or a GGUF file of it")
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    head_dim = config.get("head_dim") or (128 if architecture == "qwen3" else int(config["hidden_size"]) // heads)
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    return ModelConfig(
        architecture=architecture,
        layers=layers,
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(head_dim),
        vocabulary_size=int(config["vocab_size"]),
        max_length=int(config["max_position_embeddings"]),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        rope=_rope(config),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        windows=_windows(architecture, config, layers),
        end_token_ids=() if ends is None else tuple(ends) if isinstance(ends, list) else (int(ends),),
    )


def _windows(architecture: str, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if window is None or architecture == "llama" or not config.get("use_sliding_window", architecture == "mistral"):
        return (None,) * layers
    if kinds := config.get("layer_types"):
        return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    # Qwen: the layers from max_window_layers on have a window; Mistral: all of them.
    first = 0 if architecture == "mistral" else int(config.get("max_window_layers", 28))
    return tuple(int(window) if layer >= first else None for layer in range(layers))


def _rope(config: Mapping[str, Any]) -> Rope:
    # transformers 5 writes one map, earlier versions a base beside an optional map that names its kind in either of two keys.
    fields = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(fields.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    scaling = str(fields.get("rope_type") or fields.get("type") or "default")
    if scaling not in _SCALINGS:
        raise ConfigError(f"rope scaling {scaling!r} is not supported, only {', '.join(_SCALINGS)}")
    if float(config.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ConfigError("partial rotary embedding is not supported: every dimension of a head is rotated")
    if scaling == "default":
        return Rope(theta=theta)
    if scaling == "linear":
        return Rope(theta=theta, scaling=scaling, factor=float(fields["factor"]))
    return Rope(
        theta=theta,
        scaling=scaling,
        factor=float(fields["factor"]),
        low_frequency_factor=float(fields["low_freq_factor"]),
        high_frequency_factor=float(fields["high_freq_factor"]),
        original_max_length=int(fields["original_max_position_embeddings"]),
    )


def from_gguf(
    metadata: Mapping[str, Any], *, vocabulary_size: int, tied_embeddings: bool, frequency_divisors: tuple[float, ...] = ()
) -> ModelConfig:
    """From the metadata of a GGUF file (ggml ``docs/gguf.md``); what it does not say, its tensors do. Raises ConfigError."""
    # Mistral's files call themselves llama, which differs in nothing that they use.
    architecture = _known_architecture(str(metadata.get("general.architecture")))
    try:
        return _from_gguf(architecture, metadata, vocabulary_size, tied_embeddings, frequency_divisors)
    except KeyError as error:
        raise ConfigError(f"the GGUF file does not say {error}: convert the model again with a current llama.cpp") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"the GGUF file's metadata cannot be used: {error}: download the model again") from error


def _from_gguf(
    architecture: str,
    metadata: Mapping[str, Any],
    vocabulary_size: int,
    tied_embeddings: bool,
    frequency_divisors: tuple[float, ...],
) -> ModelConfig:
    def field(name: str) -> Any:
        return metadata[f"{architecture}.{name}"]

    heads, hidden_size, layers = int(field("attention.head_count")), int(field("embedding_length")), int(field("block_count"))
    head_dim = int(metadata.get(f"{architecture}.attention.key_length", hidden_size // heads))
    if int(metadata.get(f"{architecture}.rope.dimension_count", head_dim)) != head_dim:
        raise ConfigError("partial rotary embedding is not supported: every dimension of a head is rotated")
    scaling = str(metadata.get(f"{architecture}.rope.scaling.type", "none"))
    if scaling not in ("none", "linear"):
        raise ConfigError(f"rope scaling {scaling!r} is not supported in GGUF files, only none and linear")
    window = metadata.get(f"{architecture}.attention.sliding_window")
    ends = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    return ModelConfig(
        architecture=architecture,
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=int(field("feed_forward_length")),
        heads=heads,
        kv_heads=int(metadata.get(f"{architecture}.attention.head_count_kv", heads)),
        head_dim=head_dim,
        vocabulary_size=vocabulary_size,
        max_length=int(field("context_length")),
        norm_epsilon=float(field("attention.layer_norm_rms_epsilon")),
        rope=Rope(
            theta=float(metadata.get(f"{architecture}.rope.freq_base", 10_000.0)),
            scaling="default" if scaling == "none" else scaling,
            factor=float(metadata.get(f"{architecture}.rope.scaling.factor", 1.0)),
            frequency_divisors=frequency_divisors,
        ),
        tied_embeddings=tied_embeddings,
        windows=(int(window) if window else None,) * layers,
        end_token_ids=tuple(dict.fromkeys(int(end) for end in ends if end is not None)),
    )


def _known_architecture(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ConfigError(f"model type {name!r} is not supported, only {', '.join(ARCHITECTURES)}")
    return name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return content
