"""The norm of one row, computed another way, is the norm of torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from enginehouse_engine.model.norm import Norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("largest", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(1, 96), (1, 1, 96), (1, 4, 96), (3, 96), (0, 96)])
def test_a_norm_is_that_of_torch(shape: tuple[int, ...], largest: float, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    # Far from a mean of zero, and one value that outweighs all others, as trained models have them.
    x = torch.rand(shape, generator=draw)
    x[..., 7] = largest
    weight = torch.randn(96, generator=draw)
    x, weight = x.to(dtype), weight.to(dtype)
    exact = functional.rms_norm(x.double(), (96,), weight.double(), 1e-5)
    relative = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(Norm(weight, epsilon=1e-5)(x).double(), exact, rtol=relative, atol=1e-5)
