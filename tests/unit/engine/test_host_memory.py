"""Memory that is zero and not there until it is used."""

from __future__ import annotations

from pathlib import Path

import torch

from enginehouse_engine.model.host_memory import lazy_zeros

MIB = 1024 * 1024
CPU = torch.device("cpu")


def anonymous_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def test_nothing_is_resident_until_it_is_used_and_then_only_what_was() -> None:
    before = anonymous_bytes()
    found = lazy_zeros((256, MIB // 2), dtype=torch.bfloat16, device=CPU)
    assert anonymous_bytes() - before < 8 * MIB
    found[:16] = 1
    assert 16 * MIB <= anonymous_bytes() - before < 32 * MIB
    assert (found.shape, found.dtype) == ((256, MIB // 2), torch.bfloat16)
    assert float(found[-1].abs().max()) == 0.0
    assert float(found[15].min()) == 1.0


def test_the_memory_goes_with_the_tensor() -> None:
    before = anonymous_bytes()
    found = lazy_zeros((64, MIB), dtype=torch.int8, device=CPU)
    found[:] = 1
    assert anonymous_bytes() - before >= 64 * MIB
    view = found[3:]
    del found
    assert int(view[0, 0]) == 1, "a view keeps it"
    del view
    assert anonymous_bytes() - before < 8 * MIB
