"""What an engine core may ask of whatever runs the model, and the flat arrays that go to and fro.

Invariant: a step is a pure function of its input and of the KV cache: requests leave no other trace in a worker, and randomness
comes in from outside, so that every worker of a rank chooses the same token and a step can be repeated.
Does not know what a request is, nor which kinds of executor there are (``factory.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]


class ExecutorFailure(Exception):
    """A worker is gone or broken; the rank cannot go on. Carries the worker's text, and ``failure_class``: its class."""

    def __init__(self, message: str, *, failure_class: str = "Exception") -> None:
        super().__init__(message)
        self.failure_class = failure_class


class WorkerGone(ExecutorFailure):
    """A worker has ended, or has said that it is about to. Of what, its launcher knows best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProfile:
    """What one worker says about its model and its memory after the profile run."""

    available_bytes: int
    """Left of the budget for KV blocks; negative when weights and activations alone exceed it."""
    block_bytes: int
    """One KV block of this worker, all its layers."""
    model_max_length: int
    """Positions the model was made for (tokens)."""
    vocabulary_size: int
    """Valid token ids are 0 to this, exclusive."""
    end_token_ids: tuple[int, ...]
    """Tokens by which the model ends its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingInput:
    """How the N choosing sequences of a step choose; row i belongs to the i-th of them. Absent from a step = all greedy."""

    temperature: Float32s
    """(N,); 0 = greedy."""
    top_k: Int32s
    """(N,); 0 = all tokens."""
    top_p: Float32s
    min_p: Float32s
    uniform: NDArray[np.float64]
    """(N,) in [0, 1): the step's randomness."""
    presence_penalty: Float32s
    frequency_penalty: Float32s
    repetition_penalty: Float32s
    history_rows: Int32s
    """(H,) with ``history_tokens`` and ``history_generated``: the tokens so far of rows that have a penalty."""
    history_tokens: Int32s
    history_generated: NDArray[np.bool_]
    bias_rows: Int32s
    """(B,) with ``bias_tokens`` and ``bias_values``: added to single logits; minus infinity forbids."""
    bias_tokens: Int32s
    bias_values: Float32s
    logprobs: int
    """Most alternatives any row wants to see; 0 = only the chosen token's; -1 = none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringInput:
    """The R places in a step's prompts whose next token is known and wanted with its log probability."""

    rows: Int32s
    """(R,) places in the step's tokens, rising."""
    followers: Int32s
    """(R,) the token after each: in this step or in a later one."""
    alternatives: int
    """Most alternatives any of them wants to see; 0 = none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """T tokens of S sequences; the first N sequences choose their next token. A sequence's tokens are adjacent."""

    tokens: Int32s
    """(T,)"""
    query_lengths: Int32s
    """(S,) how many of the tokens belong to each sequence; at least 1."""
    context_lengths: Int32s
    """(S,) tokens of each sequence in the cache after the step; its last ``query_lengths`` are this step's."""
    block_tables: Int32s
    """(S, B) block of every ``block_size`` tokens, padded with the reserved block."""
    choosing: int
    """N: sequences that choose come first."""
    sampling: SamplingInput | None = None
    scoring: ScoringInput | None = None
    """Absent = nobody wants to see log probabilities of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringOutput:
    """Log probabilities under the model's own distribution, of the R followers and of the best tokens in their place."""

    logprobs: Float32s
    """(R,)"""
    top_tokens: Int32s
    """(R, K) in falling order."""
    top_logprobs: Float32s


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What the N choosing sequences chose. Owned arrays: they alias nothing of the worker."""

    tokens: Int32s
    """(N,)"""
    logprobs: Float32s | None = None
    """(N,) log probability of the chosen token under the model's own distribution, before penalties and temperature."""
    top_tokens: Int32s | None = None
    """(N, K) best alternatives in falling order."""
    top_logprobs: Float32s | None = None
    scoring: ScoringOutput | None = None
    """Present if the step asked for it."""


class Executor(ABC):
    """The workers of one rank. The constructor loads the model; then profile, initialise once, and execute until shut down.

    Every method raises ExecutorFailure when a worker is lost.
    """

    @abstractmethod
    def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker; their answers in the order of the workers."""

    @abstractmethod
    def determine_available_memory(self) -> list[WorkerProfile]:
        """Run the largest step there can be, measure, and say what is left; one profile per worker."""

    @abstractmethod
    def initialize_kv_cache(self, total_blocks: int) -> None:
        """Allocate the cache in every worker; the reserved block is counted."""

    @abstractmethod
    def execute_model(self, step: StepInput) -> StepOutput:
        """Compute one step."""

    def fileno(self) -> int | None:
        """For the engine core's poller, while it is idle: readable when :meth:`attend` has something to do. None = never."""
        return None

    def attend(self) -> None:  # noqa: B027 - most executors have no worker that could fail outside a call
        """Notice what happened outside a call; never blocks. Before each sleep on :meth:`fileno`."""

    @abstractmethod
    def check_health(self) -> None:
        """Return when all workers can answer."""

    @abstractmethod
    def shutdown(self) -> None:
        """Release memory and end what this executor started. May be called twice."""
