"""What a decoder looks like: one frozen value, read from a Hugging Face ``config.json`` or from GGUF metadata.

Invariant: everything the forward pass depends on is here, and a model that would be computed wrongly is refused by name instead.
Does not read weights.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enginehouse_engine.config import ConfigError
from enginehouse_engine.model.checked_fields import CheckedFields

ARCHITECTURES: Final = ("llama", "mistral", "qwen2", "qwen3")
_SCALINGS: Final = ("default", "linear", "llama3")
_MOST_LAYERS: Final = 4096
"""Far above any model: a broken number is refused before anything is made for each layer."""


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
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ConfigError(
                f"{self.heads} query heads cannot share {self.kv_heads} key heads of {self.head_dim} dimensions evenly: the "
                "model's configuration is broken"
            )
        divisors = self.rope.frequency_divisors
        if divisors and not (len(divisors) == self.head_dim // 2 and all(0 < divisor < math.inf for divisor in divisors)):
            raise ConfigError(
                f"the model has {len(divisors)} rope frequency divisors, wanted {self.head_dim // 2} numbers above 0: get it again"
            )

    @property
    def normalizes_heads(self) -> bool:
        """Qwen3 normalizes each query and key head before it is rotated."""
        return self.architecture == "qwen3"


def from_folder(folder: Path) -> ModelConfig:
    """Read ``config.json`` and, where there is one, ``generation_config.json``. Raises ConfigError."""
    config = _read_json(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.exists() else CheckedFields({}, source=str(generation_path))
    architecture = _known_architecture(config.text("model_type"))
    activation = config.text("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"activation {activation!r} is not supported: the decoder family uses silu")
    if config.has("quantization_config"):
        method = config.inner("quantization_config").text("quant_method", "unknown")
        raise ConfigError(f"weights quantized by {method!r} are not supported: use the unquantized model or a GGUF file of it")
    layers, heads = config.whole("num_hidden_layers", most=_MOST_LAYERS), config.whole("num_attention_heads")
    hidden_size = config.whole("hidden_size")
    return ModelConfig(
        architecture=architecture,
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=config.whole("intermediate_size"),
        heads=heads,
        kv_heads=config.whole("num_key_value_heads", heads),
        head_dim=config.whole("head_dim", 128 if architecture == "qwen3" else hidden_size // heads),
        vocabulary_size=config.whole("vocab_size"),
        max_length=config.whole("max_position_embeddings"),
        norm_epsilon=config.positive("rms_norm_eps", 1e-6),
        rope=_rope(config),
        tied_embeddings=config.flag("tie_word_embeddings", default=False),
        windows=_windows(architecture, config, layers),
        end_token_ids=(generation if generation.has("eos_token_id") else config).token_ids("eos_token_id"),
    )


def _windows(architecture: str, config: CheckedFields, layers: int) -> tuple[int | None, ...]:
    used = config.flag("use_sliding_window", default=architecture == "mistral")
    if architecture == "llama" or not used or not config.has("sliding_window"):
        return (None,) * layers
    window = config.whole("sliding_window")
    if config.has("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in config.texts("layer_types", count=layers))
    # Qwen: the layers from max_window_layers on have a window; Mistral: all of them.
    first = 0 if architecture == "mistral" else config.whole("max_window_layers", 28, least=0)
    return tuple(window if layer >= first else None for layer in range(layers))


def _rope(config: CheckedFields) -> Rope:
    # transformers 5 writes one map, earlier versions a base beside an optional map that names its kind in either of two keys.
    fields = config.inner("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    theta = (fields if fields.has("rope_theta") else config).positive("rope_theta", 10_000.0)
    scaling = fields.text("rope_type" if fields.has("rope_type") else "type", "default")
    if scaling not in _SCALINGS:
        raise ConfigError(f"rope scaling {scaling!r} is not supported, only {', '.join(_SCALINGS)}")
    if (fields if fields.has("partial_rotary_factor") else config).positive("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("partial rotary embedding is not supported: every dimension of a head is rotated")
    if scaling == "default":
        return Rope(theta=theta)
    if scaling == "linear":
        return Rope(theta=theta, scaling=scaling, factor=fields.positive("factor"))
    low, high = fields.positive("low_freq_factor"), fields.positive("high_freq_factor")
    if not low < high:
        raise fields.wrong("high_freq_factor", f"a number above low_freq_factor, {low:g}")
    return Rope(
        theta=theta,
        scaling=scaling,
        factor=fields.positive("factor"),
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_max_length=fields.whole("original_max_position_embeddings"),
    )


def from_gguf(
    metadata: CheckedFields, *, vocabulary_size: int, tied_embeddings: bool, frequency_divisors: tuple[float, ...] = ()
) -> ModelConfig:
    """From the metadata of a GGUF file (ggml ``docs/gguf.md``); what it does not say, its tensors do. Raises ConfigError."""
    # Mistral's files call themselves llama, which differs in nothing that they use.
    architecture = _known_architecture(metadata.text("general.architecture"))
    prefix = f"{architecture}."
    heads, hidden_size = metadata.whole(prefix + "attention.head_count"), metadata.whole(prefix + "embedding_length")
    layers = metadata.whole(prefix + "block_count", most=_MOST_LAYERS)
    head_dim = metadata.whole(prefix + "attention.key_length", hidden_size // heads)
    if metadata.whole(prefix + "rope.dimension_count", head_dim) != head_dim:
        raise ConfigError("partial rotary embedding is not supported: every dimension of a head is rotated")
    scaling = metadata.text(prefix + "rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ConfigError(f"rope scaling {scaling!r} is not supported in GGUF files, only none and linear")
    ends = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")]
    return ModelConfig(
        architecture=architecture,
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=metadata.whole(prefix + "feed_forward_length"),
        heads=heads,
        kv_heads=metadata.whole(prefix + "attention.head_count_kv", heads),
        head_dim=head_dim,
        vocabulary_size=vocabulary_size,
        max_length=metadata.whole(prefix + "context_length"),
        norm_epsilon=metadata.positive(prefix + "attention.layer_norm_rms_epsilon"),
        rope=Rope(
            theta=metadata.positive(prefix + "rope.freq_base", 10_000.0),
            scaling="default" if scaling == "none" else scaling,
            factor=metadata.positive(prefix + "rope.scaling.factor", 1.0),
            frequency_divisors=frequency_divisors,
        ),
        tied_embeddings=tied_embeddings,
        windows=(metadata.whole(prefix + "attention.sliding_window", 0, least=0) or None,) * layers,
        end_token_ids=tuple(dict.fromkeys(metadata.whole(end, least=0) for end in ends if metadata.has(end))),
    )


def _known_architecture(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ConfigError(f"model type {name!r} is not supported, only {', '.join(ARCHITECTURES)}")
    return name


def _read_json(path: Path) -> CheckedFields:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return CheckedFields(content, source=str(path))
