"""Positions: together they hold the whole model, and a split that cannot be is refused with those that can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse_engine.config import ConfigError, EngineConfig, ParallelConfig
from enginehouse_engine.core.context_fit import ContextTooSmall
from enginehouse_engine.core.engine_core import EngineCore
from enginehouse_engine.executor.contract import WorkerProfile
from enginehouse_engine.executor.simulated import END_TOKEN, MAX_LENGTH, VOCABULARY_SIZE, SimulatedExecutor
from enginehouse_engine.model.decoder import Decoder
from enginehouse_engine.model.model_config import ModelConfig, Rope
from enginehouse_engine.model.parallel import Parallel
from enginehouse_engine.model.position import Position, share_of
from enginehouse_engine.model.weights import WeightSource, open_weights
from enginehouse_engine.protocol import Sampling, Submit, pack_tokens

MODEL = ModelConfig(
    architecture="llama",
    layers=30,
    hidden_size=576,
    intermediate_size=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    vocabulary_size=49152,
    max_length=MAX_LENGTH,
    norm_epsilon=1e-5,
    rope=Rope(theta=10_000.0),
    tied_embeddings=True,
    windows=(None,) * 30,
    end_token_ids=(2,),
)
"""SmolLM2-135M's shape."""


def positions(tensor: int, pipeline: int) -> list[Position]:
    return [Position.of(index, tensor_size=tensor, pipeline_size=pipeline) for index in range(tensor * pipeline)]


def test_workers_are_numbered_stage_by_stage() -> None:
    everyone = positions(3, 2)
    assert [(each.pipeline_index, each.tensor_index) for each in everyone] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [each.index for each in everyone] == list(range(6))


@pytest.mark.parametrize("tensor", [2, 4, 5, 6, 7, 8, 10, 18])
def test_heads_that_cannot_be_split_evenly_are_refused_with_the_sizes_that_work(tensor: int) -> None:
    with pytest.raises(ConfigError, match=rf"{tensor} cannot split 9 query heads and 3 key heads.* to one of 1, 3, 9$"):
        share_of(MODEL, Position(tensor_size=tensor))


def test_more_stages_than_layers_are_refused_with_the_most_that_work() -> None:
    with pytest.raises(ConfigError, match=r"31 asks for more stages.* parallelism\.pipeline to 30 at most"):
        share_of(MODEL, Position(pipeline_size=31))


def test_a_key_head_is_kept_by_every_position_that_needs_it() -> None:
    shares = [share_of(MODEL, position) for position in positions(9, 1)]
    assert [share.kv_heads for share in shares] == [range(head, head + 1) for head in (0, 0, 0, 1, 1, 1, 2, 2, 2)]


SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 12), st.integers(1, 400), st.integers(1, 400))


@given(shape=SHAPES, tensor=st.integers(1, 8), pipeline=st.integers(1, 6))
def test_shares_hold_every_part_once(shape: tuple[int, int, int, int, int], tensor: int, pipeline: int) -> None:
    kv_heads, group, layers, intermediate, vocabulary = shape
    model = replace(
        MODEL,
        layers=layers,
        windows=tuple(range(1, layers + 1)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        intermediate_size=intermediate,
        vocabulary_size=vocabulary,
    )
    try:
        shares = [share_of(model, position) for position in positions(tensor, pipeline)]
    except ConfigError:
        assert (
            pipeline > layers or (kv_heads * group) % tensor or tensor > intermediate or (kv_heads % tensor and tensor % kv_heads)
        )
        return
    stage, line = shares[:tensor], shares[::tensor]
    assert [layer for share in line for layer in share.layers] == list(range(layers))
    assert {len(share.layers) for share in line} <= {layers // pipeline, -(-layers // pipeline)}
    assert [head for share in stage for head in share.heads] == list(range(kv_heads * group))
    assert [place for share in stage for place in share.intermediate] == list(range(intermediate))
    assert [row for share in stage for row in share.vocabulary][:vocabulary] == list(range(vocabulary))
    assert {head for share in stage for head in share.kv_heads} == set(range(kv_heads))
    for share in shares:
        assert share.model.windows == tuple(layer + 1 for layer in share.layers)
        assert [head // group for head in share.heads] == sorted(head // group for head in share.heads)
        assert {head // group for head in share.heads} == set(share.kv_heads)
        assert share.model.heads % share.model.kv_heads == 0


class Counted:
    """A source that counts the elements it gives away."""

    def __init__(self, source: WeightSource) -> None:
        self.config = source.config
        self.elements = 0
        self._source = source

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def read(self, name: str, *, rows: range | None = None, columns: range | None = None) -> torch.Tensor:
        tensor = self._source.read(name, rows=rows, columns=columns)
        self.elements += tensor.numel()
        return tensor


def elements_read(model: Path, position: Position) -> int:
    source = Counted(open_weights(str(model)))
    Decoder(source, dtype=torch.float32, device=torch.device("cpu"), threads=1, parallel=Parallel(position))
    return source.elements


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 3), (2, 3)])
def test_a_worker_reads_its_share_and_no_more(tensor: int, pipeline: int, small_models: dict[str, Path]) -> None:
    model = small_models["llama"]
    whole = elements_read(model, Position())
    norms = 7 * 64
    shares = [elements_read(model, position) for position in positions(tensor, pipeline)]
    # Every position of a stage keeps the norms.
    assert sum(shares) == whole + (tensor - 1) * norms
    assert max(shares) <= whole / tensor / (2 if pipeline == 3 else 1) + norms


class Split(SimulatedExecutor):
    """Says what the workers of a rank would say whose memory is given."""

    def __init__(self, config: EngineConfig, model: ModelConfig, available: list[int], element_bytes: int) -> None:
        super().__init__(config)
        everyone = positions(config.parallel.tensor, config.parallel.pipeline)
        self.block_bytes = [
            share_of(model, position).kv_block_bytes(block_size=config.block_size, element_bytes=element_bytes)
            for position in everyone
        ]
        self._available = available

    def determine_available_memory(self) -> list[WorkerProfile]:
        return [
            WorkerProfile(
                available_bytes=available,
                block_bytes=block_bytes,
                model_max_length=MAX_LENGTH,
                vocabulary_size=VOCABULARY_SIZE,
                end_token_ids=(END_TOKEN,),
            )
            for available, block_bytes in zip(self._available, self.block_bytes, strict=True)
        ]


@settings(max_examples=80, deadline=None)
@given(
    block_size=st.sampled_from([1, 3, 16, 32]),
    layers=st.integers(1, 9),
    kv_heads=st.sampled_from([1, 2, 3, 6]),
    element_bytes=st.sampled_from([2, 4]),
    pipeline=st.integers(1, 4),
    spec=st.none() | st.integers(2, 200),
    others=st.integers(0, 3),
    data=st.data(),
)
def test_the_limit_of_a_rank_is_that_of_its_smallest_worker_and_is_kept(
    block_size: int,
    layers: int,
    kv_heads: int,
    element_bytes: int,
    pipeline: int,
    spec: int | None,
    others: int,
    data: st.DataObject,
) -> None:
    """Of all workers together: the limit completes, one token more is refused, and more memory never makes it smaller."""
    pipeline = min(pipeline, layers)
    tensor = data.draw(st.sampled_from([size for size in (1, 2, 3, 6) if kv_heads % size == 0 or size % kv_heads == 0]))
    model = replace(MODEL, heads=6, kv_heads=kv_heads, layers=layers, windows=(None,) * layers)
    config = EngineConfig(
        replica_uid="r",
        model_path="",
        model_uri="",
        served_model_name="s",
        executor="Simulated",
        parallel=ParallelConfig(1, tensor, pipeline),
        memory_budget_bytes=0,
        block_size=block_size,
        max_batch=data.draw(st.integers(1, 5)),
        max_context_length=spec,
    )
    sizes = Split(config, model, [], element_bytes).block_bytes
    available = [data.draw(st.integers(-size, 30 * size) if data.draw(st.booleans()) else st.just(40 * size)) for size in sizes]
    blocks = min(memory // size for memory, size in zip(available, sizes, strict=True))
    if blocks < 2:
        with pytest.raises(ContextTooSmall):
            EngineCore(config, Split(config, model, available, element_bytes))
        return
    core = EngineCore(config, Split(config, model, available, element_bytes))
    limit = core.fit.max_context_length
    assert limit == min(MAX_LENGTH, spec or MAX_LENGTH, (blocks - 1) * block_size)
    assert all(core.fit.total_blocks * size <= memory for memory, size in zip(available, sizes, strict=True))
    luckier = data.draw(st.integers(0, len(sizes) - 1))
    more = [memory + (5 * sizes[index] if index == luckier else 0) for index, memory in enumerate(available)]
    assert EngineCore(config, Split(config, model, more, element_bytes)).fit.max_context_length >= limit
    if limit < 2:
        return
    for index in range(others):
        asked = Sampling(max_tokens=limit // 2, temperature=0, ignore_eos=True)
        core.add(Submit(f"other {index}", pack_tokens([index] * (limit - limit // 2)), asked), front_end=0)
    prompt = data.draw(st.integers(1, limit - 1))
    exact = Submit("exact", pack_tokens([7] * prompt), Sampling(max_tokens=limit - prompt, temperature=0, ignore_eos=True))
    over = Submit("over", pack_tokens([7] * prompt), Sampling(max_tokens=limit - prompt + 1, temperature=0, ignore_eos=True))
    assert core.add(exact, front_end=0) is None
    assert core.add(over, front_end=0) is not None
    produced = 0
    while core.has_work:
        for output in core.step().get(0, ()):
            produced += len(output.tokens) if output.request_id == "exact" else 0
    assert produced == limit - prompt
