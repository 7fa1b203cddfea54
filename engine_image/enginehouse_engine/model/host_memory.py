"""Zeroed memory for the KV cache that costs nothing until it is used.

Invariant: on the CPU the pages come from the kernel, zeroed and on first use, as huge pages where it has them: a start does not
write gigabytes of zeros, and a death is noticed sooner, because the kernel frees memory before it closes the death pipe
(``docs/adr``, registration.py). Does not account for memory: ``core/context_fit.py`` does.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch


def lazy_zeros(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros; ``shape`` has at least one element. Raises OSError when the machine does not promise so much memory."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    mapping = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel without transparent huge pages says so; small pages then do.
    with contextlib.suppress(OSError):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).view(shape)
