"""What runs on one accelerator: loads the model, measures what it needs, holds the KV cache, computes steps.

Invariant: memory in use never exceeds the rank's budget: everything but the KV cache is measured at its peak before the cache is
sized. Does not schedule and does not know requests.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from enginehouse_engine.config import ConfigError, EngineConfig
from enginehouse_engine.core.kv_cache import RESERVED_BLOCK
from enginehouse_engine.cores import usable_cores
from enginehouse_engine.executor.contract import (
    ExecutorFailure,
    SamplingInput,
    ScoringInput,
    StepInput,
    StepOutput,
    WorkerProfile,
)
from enginehouse_engine.model.attention import PagedAttention
from enginehouse_engine.model.decoder import Decoder
from enginehouse_engine.model.parallel import SOLO, Parallel, Position
from enginehouse_engine.model.sampler import sample
from enginehouse_engine.model.scoring import SLICE_ROWS, score
from enginehouse_engine.model.weights import open_weights

logger = logging.getLogger("enginehouse.worker")

_GATHER_TOKENS: Final = 16 * 1024
"""Context gathered in one go: enough for a batch of ordinary requests, small enough for the processor's cache."""
_PROFILE_DEPTH: Final = 1
"""Layers computed by the profile run: all have the same shape and free what they took."""
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Worker:
    """One model on one device."""

    def __init__(self, config: EngineConfig, *, rank: int, parallel: Parallel = SOLO, device: torch.device | None = None) -> None:
        """Load this position's share. ``parallel``: to the rank's other workers; ``device``: one that was chosen for it."""
        self._config = config
        self._parallel = parallel
        self._device = device or device_of(rank, parallel.position)
        if self._device.type == "cuda":
            # Libraries that are not told a device take the current one, and memory on it.
            torch.cuda.set_device(self._device)
        # What interpreter and libraries take is not part of the budget: the launcher has set it aside.
        self._resident_before = _resident_bytes("VmRSS") if self._device.type == "cpu" else 0
        threads = max(1, usable_cores() // (config.parallel.data * parallel.position.workers))
        torch.set_num_threads(threads)
        self._dtype = choose_dtype(config.dtype, self._device)
        logger.info("libraries are imported, reading %s", config.model_path)
        with torch.inference_mode():
            self._decoder = Decoder(
                open_weights(config.model_path), dtype=self._dtype, device=self._device, threads=threads, parallel=parallel
            )
        share = self._decoder.share
        self.model = share.model
        self._block_bytes = share.kv_block_bytes(block_size=config.block_size, element_bytes=self._dtype.itemsize)
        self._longest_context: int | None = None
        self._attention: PagedAttention | None = None
        logger.info(
            "model %s in %s on %s, layers %d to %d, %d heads of each, %d threads",
            self.model.architecture,
            self._dtype,
            self._device,
            share.layers.start,
            share.layers.stop - 1,
            len(share.heads),
            threads,
        )

    def profile(self) -> WorkerProfile:
        """Run the largest step there can be and measure its peak; the cache it used is gone again afterwards."""
        measured = self._measure()
        available = self._budget_bytes() - measured
        logger.info("weights and activations need %d bytes at most, %d are left for the KV cache", measured, max(available, 0))
        return WorkerProfile(
            available_bytes=available,
            block_bytes=self._block_bytes,
            model_max_length=self.model.max_length,
            vocabulary_size=self.model.vocabulary_size,
            end_token_ids=self.model.end_token_ids,
        )

    def initialize_kv_cache(self, total_blocks: int) -> None:
        self._attention = None
        self._attention = self._allocate(total_blocks)

    @torch.inference_mode()
    def execute_model(self, step: StepInput) -> StepOutput | None:
        """Compute this position's share of one step; what was chosen, from the position that chooses.

        Raises ExecutorFailure before the cache is there, and when another worker is lost.
        """
        if self._attention is None:
            raise ExecutorFailure("execute_model was called before initialize_kv_cache")
        return self._compute(step, self._attention)

    def shutdown(self) -> None:
        self._attention = None

    def _compute(self, step: StepInput, attention: PagedAttention, depth: int | None = None) -> StepOutput | None:
        geometry = attention.geometry(step)
        tokens = torch.from_numpy(step.tokens).to(self._device)
        hidden = self._decoder.forward(tokens, geometry, attention, depth=depth)
        if hidden is None:
            return None

        def logits_at(rows: NDArray[np.integer[Any]]) -> torch.Tensor | None:
            return self._decoder.logits(hidden, torch.from_numpy(rows.astype(np.int64)).to(self._device))

        # First, so that never the logits of both are there at once.
        scoring = None if step.scoring is None else score(step.scoring, logits_at)
        logits = logits_at(np.cumsum(step.query_lengths)[: step.choosing] - 1)
        if logits is None:
            return None
        output = sample(logits, step.sampling)
        return output if scoring is None else dataclasses.replace(output, scoring=scoring)

    def _allocate(self, total_blocks: int) -> PagedAttention:
        return PagedAttention(
            self.model,
            block_size=self._config.block_size,
            total_blocks=total_blocks,
            gather_tokens=max(_GATHER_TOKENS, self._agreed_longest_context()),
            dtype=self._dtype,
            device=self._device,
        )

    def _agreed_longest_context(self) -> int:
        """No sequence can be longer: by the model, the configuration, or a budget that held nothing but some worker's cache.

        The rank's workers say the same, so that they compute steps of one size; they ask at the same time.
        """
        if self._longest_context is None:
            in_memory = self._budget_bytes() // self._block_bytes * self._config.block_size
            wanted = self._config.max_context_length or self.model.max_length
            self._longest_context = self._parallel.smallest(max(1, min(self.model.max_length, wanted, in_memory)))
        return self._longest_context

    def _budget_bytes(self) -> int:
        """On a device, the share of its memory; on the CPU what the launcher has worked out."""
        if self._device.type == "cpu":
            return self._config.memory_budget_bytes
        _, total = torch.cuda.mem_get_info(self._device)
        return total * self._config.memory_utilization_percent // 100

    @torch.inference_mode()
    def _measure(self) -> int:
        """Bytes at the peak of a step as large as any, in a cache that consists of the reserved block.

        A whole step's prompt beside a batch of single tokens: what the prompt sees is there while all of them choose.
        """
        config = self._config
        attention = self._allocate(1)
        attention.touch()
        _reset_peak(self._device)
        longest = self._agreed_longest_context()
        others = config.max_batch - 1
        new = [1] * others + [min(config.max_step_tokens, longest)]
        lengths = [min(longest, max(1, _GATHER_TOKENS // config.max_batch))] * others + [longest]
        self._compute(_dummy_step(config, new, lengths, choosing=config.max_batch), attention, _PROFILE_DEPTH)
        return _peak_bytes(self._device) - self._resident_before


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` = bfloat16 where the hardware computes in it, else float32. Raises ConfigError."""
    if name != "auto":
        if name not in _DTYPES:
            raise ConfigError(f"dtype is auto, {', '.join(_DTYPES)}; found {name!r}")
        if name == "float16" and device.type == "cpu":
            raise ConfigError("dtype float16 needs an accelerator: use auto, bfloat16 or float32 on a CPU")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return torch.bfloat16 if {"avx512_bf16", "amx_bf16"} & set(flags) else torch.float32


def device_of(rank: int, position: Position, *, number: int | None = None) -> torch.device:
    """The accelerator of a rank's worker, or the CPU where there is none; ``number`` = it was chosen. Raises ConfigError."""
    count = torch.cuda.device_count()
    if count == 0:
        return torch.device("cpu")
    if number is None:
        number = rank * position.workers + position.index
    if number >= count:
        raise ConfigError(
            f"worker {position.index} of rank {rank} needs an accelerator of its own, number {number} from 0, this container "
            f"has {count}: lower parallelism.data, tensor or pipeline"
        )
    return torch.device("cuda", number)


def _dummy_step(config: EngineConfig, new: list[int], lengths: list[int], *, choosing: int) -> StepInput:
    """A step of that size with everything a sampler can be asked for, on the reserved block alone."""
    width = -(-max(lengths) // config.block_size)
    rows = np.arange(choosing, dtype=np.int32)

    def constant(value: float) -> np.typing.NDArray[np.float32]:
        return np.full(choosing, value, np.float32)

    sampling = SamplingInput(
        temperature=constant(1),
        top_k=np.zeros(choosing, np.int32),
        top_p=np.where(rows % 2, 0.9, 1.0).astype(np.float32),
        min_p=constant(0.05),
        uniform=np.full(choosing, 0.5),
        presence_penalty=constant(0.1),
        frequency_penalty=constant(0.1),
        repetition_penalty=constant(1.1),
        history_rows=rows,
        history_tokens=np.zeros(choosing, np.int32),
        history_generated=np.ones(choosing, np.bool_),
        bias_rows=rows,
        bias_tokens=np.zeros(choosing, np.int32),
        bias_values=constant(1),
        logprobs=20,
    )
    scored = np.arange(min(sum(new), SLICE_ROWS), dtype=np.int32)
    return StepInput(
        tokens=np.zeros(sum(new), np.int32),
        query_lengths=np.array(new, np.int32),
        context_lengths=np.array(lengths, np.int32),
        block_tables=np.full((len(new), width), RESERVED_BLOCK, np.int32),
        choosing=choosing,
        sampling=sampling,
        scoring=ScoringInput(rows=scored, followers=np.zeros_like(scored), alternatives=20),
    )


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        # The peak then includes loading: more than needed, never less.
        logger.info("peak memory cannot be reset: %s", error)


def _peak_bytes(device: torch.device) -> int:
    """Of this process: resident memory on a CPU; on an accelerator what torch holds at most and what others and the driver hold."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        outside = total - free - torch.cuda.memory_reserved(device)
        return outside + torch.cuda.max_memory_reserved(device)
    return _resident_bytes("VmHWM")


def _resident_bytes(field: str) -> int:
    """``VmRSS`` = now, ``VmHWM`` = at the peak (proc(5))."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024
