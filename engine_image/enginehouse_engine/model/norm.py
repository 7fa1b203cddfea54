"""Root mean square norm of rows (Zhang and Sennrich, 2019).

Invariant: equals ``torch.nn.functional.rms_norm`` up to rounding; sums are float32 whatever the type.
Exists because that is ten kernels on the CPU, whose calls are what one row costs; for more rows and on other devices it is used.
"""

from __future__ import annotations

import torch
from torch.nn import functional


class Norm:
    """Scales rows (..., size) to a root mean square of one, then by ``weight`` (size,)."""

    def __init__(self, weight: torch.Tensor, *, epsilon: float) -> None:
        self._weight = weight
        self._twice = weight.repeat(2) if weight.device.type == "cpu" else None
        self._size = len(weight)
        self._epsilon = epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._twice is None or x.numel() > self._size:
            return functional.rms_norm(x, (self._size,), self._weight, self._epsilon)
        # A row and its negative have the mean zero together, so that their layer norm, one kernel, is the row's norm.
        both = functional.layer_norm(torch.cat((x, -x), dim=-1), (2 * self._size,), self._twice, None, self._epsilon)
        return both[..., : self._size]
