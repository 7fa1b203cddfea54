"""The closed form, at its edges, and the promise it makes: exactly the limit completes, one token more is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.core.context_fit import ContextTooSmall, fit_context, kv_block_bytes
from enginehouse_engine.core.engine_core import EngineCore
from enginehouse_engine.executor.simulated import MAX_LENGTH, SimulatedExecutor
from enginehouse_engine.protocol import Sampling, Submit, pack_tokens


def fit(**changes: object):
    arguments = {
        "available_bytes": 1000,
        "block_bytes": 100,
        "block_size": 16,
        "max_batch": 4,
        "model_max_length": 4096,
        "spec_max_length": None,
    }
    return fit_context(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "blocks", "length", "limited_by"),
    [
        ({}, 10, 9 * 16, "memory"),
        ({"available_bytes": 1099}, 10, 9 * 16, "memory"),
        ({"available_bytes": 200}, 2, 16, "memory"),
        ({"available_bytes": 10**9}, 4 * 256 + 1, 4096, "model"),
        ({"available_bytes": 10**9, "spec_max_length": 100}, 4 * 7 + 1, 100, "spec"),
        ({"available_bytes": 10**9, "spec_max_length": 9999}, 4 * 256 + 1, 4096, "model"),
        ({"spec_max_length": 144}, 10, 144, "spec"),
        ({"spec_max_length": 145}, 10, 144, "memory"),
        ({"model_max_length": 144}, 10, 144, "model"),
    ],
)
def test_the_fit_is_the_smallest_of_model_spec_and_memory(
    changes: dict[str, int], blocks: int, length: int, limited_by: str
) -> None:
    outcome = fit(**changes)
    assert (outcome.total_blocks, outcome.max_context_length, outcome.limited_by) == (blocks, length, limited_by)


@pytest.mark.parametrize("available", [199, 100, 0, -5000])
def test_memory_without_one_usable_block_is_refused_with_what_is_missing(available: int) -> None:
    with pytest.raises(ContextTooSmall, match=f"at least {200 - available} bytes more"):
        fit(available_bytes=available)


def test_the_minimum_is_kept_or_refused() -> None:
    assert fit(min_context_length=144).max_context_length == 144
    with pytest.raises(ContextTooSmall, match=r"at least 145 tokens .* only 144 fit .* at least 100 bytes more"):
        fit(min_context_length=145)


def test_a_minimum_above_the_maximum_says_so() -> None:
    with pytest.raises(ContextTooSmall, match=r"lower context\.minLength"):
        fit(spec_max_length=64, min_context_length=65)


def test_block_bytes_of_a_known_model() -> None:
    # SmolLM2-135M in float32: 30 layers, 3 heads of 64 for keys and values.
    assert kv_block_bytes(layers=30, kv_heads=3, head_dim=64, block_size=16, element_bytes=4) == 737_280


@settings(max_examples=60, deadline=None)
@given(
    block_size=st.sampled_from([1, 3, 16, 32]),
    blocks=st.integers(2, 40),
    spec=st.none() | st.integers(2, 200),
    batch=st.integers(1, 5),
    others=st.integers(0, 3),
    data=st.data(),
)
def test_exactly_the_limit_completes_on_a_busy_rank_and_one_token_more_is_refused(
    block_size: int, blocks: int, spec: int | None, batch: int, others: int, data: st.DataObject
) -> None:
    block_bytes = kv_block_bytes(layers=30, kv_heads=3, head_dim=64, block_size=block_size, element_bytes=2)
    config = EngineConfig(
        replica_uid="r",
        model_path="",
        model_uri="",
        served_model_name="s",
        executor="Simulated",
        memory_budget_bytes=(32 << 20) + blocks * block_bytes,
        block_size=block_size,
        max_batch=batch,
        max_step_tokens=max(batch, data.draw(st.integers(1, 64))),
        max_context_length=spec,
    )
    core = EngineCore(config, SimulatedExecutor(config))
    limit = core.fit.max_context_length
    assert limit == min(MAX_LENGTH, spec or MAX_LENGTH, (blocks - 1) * block_size)
    if limit < 2:
        return
    for index in range(others):
        sampling = Sampling(max_tokens=limit // 2, temperature=0, ignore_eos=True)
        core.add(Submit(f"other {index}", pack_tokens([index] * (limit - limit // 2)), sampling), front_end=0)
    prompt = data.draw(st.integers(1, limit - 1))
    exact = Submit("exact", pack_tokens([7] * prompt), Sampling(max_tokens=limit - prompt, temperature=0, ignore_eos=True))
    over = Submit("over", pack_tokens([7] * prompt), Sampling(max_tokens=limit - prompt + 1, temperature=0, ignore_eos=True))
    assert core.add(exact, front_end=0) is None
    refusal = core.add(over, front_end=0)
    assert refusal is not None
    assert refusal.finish_reason == "refused"
    assert str(limit) in refusal.error
    produced: dict[str, int] = {}
    while core.has_work:
        for output in core.step().get(0, ()):
            produced[output.request_id] = produced.get(output.request_id, 0) + len(output.tokens)
    assert produced["exact"] == limit - prompt
    assert len(produced) == others + 1


def test_a_rank_that_pretends_to_weigh_more_fits_less() -> None:
    config = EngineConfig(
        replica_uid="r",
        model_path="",
        model_uri="",
        served_model_name="s",
        executor="Simulated",
        memory_budget_bytes=64 << 20,
        simulated_weight_bytes={1: 48 << 20},
    )
    config = msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig)
    left = [SimulatedExecutor(config, rank=rank).determine_available_memory()[0].available_bytes >> 20 for rank in (0, 1)]
    assert left == [32, 16]
