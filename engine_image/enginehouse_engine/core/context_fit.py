"""How many KV blocks fit in the memory that is left, and how long a sequence they can always hold.

Invariant: a request of exactly the fitted length completes, on an otherwise busy rank too; one token more is refused.
Closed form over whole blocks minus the reserved one: no search, no tolerance.
Does not measure memory (``worker.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse_engine.config import ConfigError


class ContextTooSmall(ConfigError):
    """The memory holds less context than the smallest one that was asked for."""

    failure_class = "ContextTooSmall"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFit:
    """The outcome of :func:`fit_context`."""

    total_blocks: int
    """To allocate, with the reserved one."""
    max_context_length: int
    """Tokens of prompt and answer together that always fit."""
    limited_by: str
    """``model``, ``memory`` or ``spec``."""

    @property
    def usable_blocks(self) -> int:
        return self.total_blocks - 1


def kv_block_bytes(*, layers: int, kv_heads: int, head_dim: int, block_size: int, element_bytes: int) -> int:
    """Bytes of one block: keys and values of ``block_size`` tokens in all layers of one worker."""
    return 2 * layers * kv_heads * head_dim * block_size * element_bytes


def fit_context(
    *,
    available_bytes: int,
    block_bytes: int,
    block_size: int,
    max_batch: int,
    model_max_length: int,
    spec_max_length: int | None,
    min_context_length: int = 1,
) -> ContextFit:
    """The blocks to allocate and the context length they always hold.

    ``available_bytes`` may be negative (the weights alone exceed the budget). Never more blocks than ``max_batch`` sequences
    of the greatest length can own. Raises ContextTooSmall when the outcome is below ``min_context_length``.
    """
    ceiling = model_max_length if spec_max_length is None else min(model_max_length, spec_max_length)
    useful_blocks = max_batch * -(-ceiling // block_size) + 1
    total_blocks = min(available_bytes // block_bytes, useful_blocks)
    length = min(ceiling, max(total_blocks - 1, 0) * block_size)
    if length < max(min_context_length, 1):
        raise ContextTooSmall(_too_small(length, min_context_length, ceiling, available_bytes, block_bytes, block_size))
    if length < ceiling:
        limited_by = "memory"
    elif spec_max_length is not None and spec_max_length < model_max_length:
        limited_by = "spec"
    else:
        limited_by = "model"
    return ContextFit(total_blocks=total_blocks, max_context_length=length, limited_by=limited_by)


def _too_small(length: int, minimum: int, ceiling: int, available_bytes: int, block_bytes: int, block_size: int) -> str:
    if minimum > ceiling:
        return (
            f"a context of at least {minimum} tokens was asked for, but the model and context.maxLength allow {ceiling}: "
            "lower context.minLength"
        )
    wanted = max(minimum, 1)
    left = max(available_bytes, 0)
    missing = (-(-wanted // block_size) + 1) * block_bytes - available_bytes
    return (
        f"a context of at least {wanted} tokens was asked for, but only {length} fit into the {left} bytes that weights and "
        f"activations leave for KV blocks of {block_bytes} bytes ({block_size} tokens each, one reserved): give the engine at "
        f"least {missing} bytes more memory, raise memory.utilizationPercent or lower context.minLength"
    )
