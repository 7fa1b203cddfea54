"""An executor without a model: no torch, ready in milliseconds, for drills, CI and scale tests.

Invariant: the text depends on every token before it, read back through the block tables from a simulated cache of one 64-bit
state per token, so that a wrong block, a wrong position or a lost token changes the answer as it would with a real model.
:func:`simulated_answer` gives the same tokens from the prompt alone.
Answers are printable ASCII in the byte vocabulary (ids 0 to 255 are bytes, 256 ends the text). Does not imitate time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from enginehouse_engine.config import EngineConfig
from enginehouse_engine.core.context_fit import kv_block_bytes
from enginehouse_engine.executor.contract import (
    Executor,
    ExecutorFailure,
    ScoringOutput,
    StepInput,
    StepOutput,
    WorkerProfile,
)

VOCABULARY_SIZE: Final = 257
END_TOKEN: Final = 256
MAX_LENGTH: Final = 8192
END_CHANCE: Final = 1 / 256
"""An answer of unlimited length ends by itself after so many tokens on average."""

WEIGHT_BYTES: Final = 32 << 20
"""What the simulated model pretends to weigh, where ``--simulated-weights`` says nothing else."""
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_PRINTABLE: Final = 95  # From space (32) to tilde (126).

States = NDArray[np.uint64]


def _advance(states: States, tokens: NDArray[np.int32]) -> States:
    """The states after one more token each."""
    mixed = (states ^ (tokens.astype(np.uint64) + np.uint64(1))) * _MULTIPLIER
    return mixed ^ (mixed >> np.uint64(29))


def _choose(states: States, randomness: NDArray[np.float64]) -> NDArray[np.int32]:
    """The token after each state; ``randomness`` (0 = greedy) stirs it."""
    stirred = (states ^ (randomness * 2.0**53).astype(np.uint64)) * _MULTIPLIER >> np.uint64(32)
    fraction = stirred.astype(np.float64) / 2.0**32
    letters = 32 + (stirred % np.uint64(_PRINTABLE)).astype(np.int32)
    return np.where(fraction < END_CHANCE, END_TOKEN, letters).astype(np.int32)


def _score(tokens: NDArray[np.int32], alternatives: int) -> ScoringOutput:
    """Each token is the best one, and those that follow it in the vocabulary are the next best."""
    places = np.arange(alternatives, dtype=np.int32)
    return ScoringOutput(
        logprobs=np.full(len(tokens), -1.0, np.float32),
        top_tokens=((tokens[:, None] + places) % VOCABULARY_SIZE).astype(np.int32),
        top_logprobs=np.tile(-1.0 - places.astype(np.float32), (len(tokens), 1)),
    )


def simulated_answer(prompt: Sequence[int], count: int) -> list[int]:
    """The ``count`` greedy tokens after ``prompt``, ignoring the end of the text."""
    state = np.zeros(1, np.uint64)
    for token in prompt:
        state = _advance(state, np.array([token], np.int32))
    answer: list[int] = []
    for _ in range(count):
        chosen = _choose(state, np.zeros(1))
        answer += chosen.tolist()
        state = _advance(state, chosen)
    return answer


class SimulatedExecutor(Executor):
    """Behaves towards the engine core like the real ones, memory included: KV blocks have the size of a small real model's."""

    def __init__(self, config: EngineConfig, *, rank: int = 0, before_step: Callable[[StepInput], None] | None = None) -> None:
        """``before_step`` is the fault hook: what it raises or does happens in the worker, before the step."""
        self._config = config
        self._weight_bytes = config.simulated_weight_bytes.get(rank, WEIGHT_BYTES)
        self._before_step = before_step
        self._states: States = np.zeros(0, np.uint64)

    def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(self, method)(*arguments)]

    def determine_available_memory(self) -> list[WorkerProfile]:
        block_bytes = kv_block_bytes(layers=30, kv_heads=3, head_dim=64, block_size=self._config.block_size, element_bytes=2)
        profile = WorkerProfile(
            available_bytes=self._config.memory_budget_bytes - self._weight_bytes,
            block_bytes=block_bytes,
            model_max_length=MAX_LENGTH,
            vocabulary_size=VOCABULARY_SIZE,
            end_token_ids=(END_TOKEN,),
        )
        return [profile]

    def initialize_kv_cache(self, total_blocks: int) -> None:
        self._states = np.zeros(total_blocks * self._config.block_size, np.uint64)

    def execute_model(self, step: StepInput) -> StepOutput:
        if self._before_step is not None:
            self._before_step(step)
        if not len(self._states):
            raise ExecutorFailure("execute_model was called before initialize_kv_cache")
        last_states = self._write_states(step)[: step.choosing]
        randomness = np.zeros(step.choosing)
        if step.sampling is not None:
            randomness = np.where(step.sampling.temperature > 0, step.sampling.uniform, 0.0)
        tokens = _choose(last_states, randomness)
        scoring = None if step.scoring is None else _score(step.scoring.followers, step.scoring.alternatives)
        if step.sampling is None or step.sampling.logprobs < 0:
            return StepOutput(tokens=tokens, scoring=scoring)
        own = _score(tokens, step.sampling.logprobs)
        return StepOutput(
            tokens=tokens, logprobs=own.logprobs, top_tokens=own.top_tokens, top_logprobs=own.top_logprobs, scoring=scoring
        )

    def check_health(self) -> None:
        """Always healthy."""

    def shutdown(self) -> None:
        self._states = np.zeros(0, np.uint64)

    def _write_states(self, step: StepInput) -> States:
        """Advance every sequence by its tokens, side by side, through the cache; the last state of each."""
        starts = step.context_lengths - step.query_lengths
        offsets = np.cumsum(step.query_lengths) - step.query_lengths
        rows = np.arange(len(starts))
        previous = self._states[self._slots(step, rows, np.maximum(starts - 1, 0))]
        states = np.where(starts > 0, previous, np.uint64(0))
        for turn in range(int(step.query_lengths.max(initial=0))):
            rows = np.flatnonzero(step.query_lengths > turn)
            states[rows] = _advance(states[rows], step.tokens[offsets[rows] + turn])
            self._states[self._slots(step, rows, starts[rows] + turn)] = states[rows]
        return states

    def _slots(self, step: StepInput, rows: NDArray[np.int64], positions: NDArray[np.int32]) -> NDArray[np.int64]:
        size = self._config.block_size
        return step.block_tables[rows, positions // size].astype(np.int64) * size + positions % size
