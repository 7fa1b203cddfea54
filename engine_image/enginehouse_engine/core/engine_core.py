"""One rank's engine: requests in, one step at a time, tokens out.

Invariant: a request that was added ends with exactly one output that has a finish reason, unless it is aborted; one that can
never run is refused at once and never queued.
Does not know sockets or processes (``process.py``), decides nothing by time, nor how a model is run (``executor/``).
"""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Iterable

from enginehouse_engine.config import ConfigError, EngineConfig
from enginehouse_engine.core.batch import build_step, due_positions
from enginehouse_engine.core.context_fit import ContextFit, fit_context
from enginehouse_engine.core.kv_cache import BlockPool
from enginehouse_engine.core.prompt_scores import PromptScores
from enginehouse_engine.core.scheduler import Scheduled, Scheduler
from enginehouse_engine.core.sequence import Sequence
from enginehouse_engine.executor.contract import Executor, ScoringOutput, StepInput, StepOutput, WorkerProfile
from enginehouse_engine.protocol import (
    PromptLogprobs,
    ProtocolError,
    RequestOutput,
    StepStats,
    Submit,
    TokenLogprobs,
    unpack_tokens,
)


class EngineCore:
    """Scheduler, KV cache and executor of one rank. Front ends are told apart by their index."""

    def __init__(self, config: EngineConfig, executor: Executor, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Profile, fit the context to the memory and allocate the cache. Raises ContextTooSmall."""
        if config.max_step_tokens < config.max_batch:
            raise ConfigError(
                f"a step of {config.max_step_tokens} tokens cannot serve {config.max_batch} sequences: raise max_step_tokens to "
                "max_batch at least"
            )
        self._executor = executor
        profiles = executor.determine_available_memory()
        self.fit = _smallest_fit(config, profiles)
        executor.initialize_kv_cache(self.fit.total_blocks)
        self._vocabulary_size = profiles[0].vocabulary_size
        # A model's settings may name tokens that it does not have, which can be neither chosen nor forbidden.
        self._end_token_ids = tuple(token for token in profiles[0].end_token_ids if token < self._vocabulary_size)
        self._pool = BlockPool(self.fit.total_blocks)
        self._scheduler = Scheduler(
            self._pool,
            block_size=config.block_size,
            max_batch=config.max_batch,
            max_step_tokens=config.max_step_tokens,
        )
        self._sequences: dict[tuple[int, str], Sequence] = {}
        self._cached_tokens = 0
        self._steps = 0
        self._clock = clock
        self._model_seconds = 0.0
        self._outside_seconds = 0.0
        self._model_ended: float | None = None
        """None when all was done since the last step: the time since then was nobody's."""

    @property
    def steps(self) -> int:
        """Computed so far."""
        return self._steps

    @property
    def requests(self) -> int:
        """To compute for."""
        return len(self._sequences)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def add(self, submit: Submit, *, front_end: int) -> RequestOutput | None:
        """Queue a request; the output that refuses it when it can never run."""
        try:
            tokens = unpack_tokens(submit.prompt)
        except ProtocolError as error:
            return _fault(submit, str(error))
        if (front_end, submit.request_id) in self._sequences:
            return _fault(submit, f"a request with id {submit.request_id} is already running")
        if reason := self._why_never(submit, tokens):
            limit = self.fit.max_context_length
            too_long = len(tokens) + submit.sampling.max_tokens > limit
            return RequestOutput(submit.request_id, (), "refused", error=reason, context_limit=limit if too_long else None)
        seed = submit.sampling.seed
        sequence = Sequence(
            front_end=front_end,
            request_id=submit.request_id,
            tokens=array("i", tokens),
            prompt_length=len(tokens),
            sampling=submit.sampling,
            seed=secrets.randbits(64) if seed is None else seed % 2**64,
        )
        if (alternatives := submit.sampling.prompt_logprobs) is not None:
            sequence.prompt_scores = PromptScores(len(tokens), alternatives=alternatives)
        if not self._sequences:
            self._model_ended = None
        self._sequences[front_end, submit.request_id] = sequence
        self._scheduler.add(sequence)
        return None

    def abort(self, request_ids: Iterable[str], *, front_end: int) -> None:
        """Forget requests of a front end; unknown ids are ignored."""
        for request_id in request_ids:
            if sequence := self._sequences.pop((front_end, request_id), None):
                self._scheduler.remove(sequence)

    def abort_front_end(self, front_end: int) -> None:
        """Forget all requests of a front end that is gone."""
        self.abort([request_id for owner, request_id in self._sequences if owner == front_end], front_end=front_end)

    def step(self) -> dict[int, tuple[RequestOutput, ...]]:
        """Compute one step; what it added, by front end. Only with :attr:`has_work`."""
        scheduled = self._scheduler.plan()
        if not scheduled:
            raise RuntimeError(f"the scheduler planned nothing for {len(self._sequences)} requests")
        step, parts = build_step(scheduled, end_token_ids=self._end_token_ids)
        output = self._execute(step)
        self._scheduler.commit(scheduled)
        if output.scoring is not None:
            _collect(parts, output.scoring)
        outputs: dict[int, list[RequestOutput]] = {}
        tokens = output.tokens.tolist()
        for row, part in enumerate(parts[: step.choosing]):
            sequence = part.sequence
            outputs.setdefault(sequence.front_end, []).append(self._append(sequence, tokens[row], output, row))
        return {front_end: tuple(rows) for front_end, rows in outputs.items()}

    def stats(self) -> StepStats:
        """The figures after the last step."""
        return StepStats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            kv_blocks_used=self._pool.used_blocks,
            preemptions=self._scheduler.preemptions,
            cached_tokens=self._cached_tokens,
            steps=self._steps,
            model_seconds=self._model_seconds,
            outside_model_seconds=self._outside_seconds,
        )

    def _execute(self, step: StepInput) -> StepOutput:
        began = self._clock()
        if self._model_ended is not None:
            self._outside_seconds += began - self._model_ended
        output = self._executor.execute_model(step)
        self._model_ended = self._clock()
        self._model_seconds += self._model_ended - began
        self._steps += 1
        return output

    def _why_never(self, submit: Submit, tokens: list[int]) -> str:
        limit = self.fit.max_context_length
        asked = len(tokens) + submit.sampling.max_tokens
        if not tokens:
            return "the prompt is empty: at least one token is needed"
        if submit.sampling.max_tokens < 0:
            return f"max_tokens is at least 0, found {submit.sampling.max_tokens}"
        if asked > limit:
            return (
                f"prompt ({len(tokens)} tokens) and answer ({submit.sampling.max_tokens} tokens) need a context of {asked} tokens, "
                f"this engine's is {limit}: shorten one of them"
            )
        named = (*tokens, *submit.sampling.logit_bias, *submit.sampling.stop_token_ids)
        if foreign := [token for token in named if not 0 <= token < self._vocabulary_size]:
            return f"token id {foreign[0]} is not in the model's vocabulary of {self._vocabulary_size}"
        return ""

    def _append(self, sequence: Sequence, token: int, output: StepOutput, row: int) -> RequestOutput:
        first = sequence.generated == 0
        prompt_logprobs = None
        if first:
            self._cached_tokens += sequence.cached_tokens or 0
            if sequence.prompt_scores is not None:
                prompt_logprobs = sequence.prompt_scores.message()
                sequence.prompt_scores = None
        cached_tokens = (sequence.cached_tokens or 0) if first else 0
        if sequence.sampling.max_tokens == 0:
            # What was chosen after the prompt is nobody's.
            self._forget(sequence)
            return RequestOutput(sequence.request_id, (), "length", prompt_logprobs=prompt_logprobs, cached_tokens=cached_tokens)
        sequence.tokens.append(token)
        reason = self._finish_reason(sequence, token)
        if reason is not None:
            self._forget(sequence)
        return RequestOutput(
            request_id=sequence.request_id,
            tokens=(token,),
            finish_reason=reason,
            stop_token=token if reason == "stop" else None,
            logprobs=_token_logprobs(sequence, token, output, row),
            prompt_logprobs=prompt_logprobs,
            cached_tokens=cached_tokens,
        )

    def _forget(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        del self._sequences[sequence.front_end, sequence.request_id]

    def _finish_reason(self, sequence: Sequence, token: int) -> str | None:
        sampling = sequence.sampling
        # A forbidden token can still come out when every other one is forbidden too: it then does not end the answer early.
        if sequence.generated > sampling.min_tokens and (
            token in sampling.stop_token_ids or (token in self._end_token_ids and not sampling.ignore_eos)
        ):
            return "stop"
        return "length" if sequence.generated == sampling.max_tokens else None


def _smallest_fit(config: EngineConfig, profiles: list[WorkerProfile]) -> ContextFit:
    """What fits in every worker."""
    fits = [
        fit_context(
            available_bytes=profile.available_bytes,
            block_bytes=profile.block_bytes,
            block_size=config.block_size,
            max_batch=config.max_batch,
            model_max_length=profile.model_max_length,
            spec_max_length=config.max_context_length,
            min_context_length=config.min_context_length,
        )
        for profile in profiles
    ]
    return min(fits, key=lambda fit: fit.total_blocks)


def _fault(submit: Submit, reason: str) -> RequestOutput:
    """The front end broke the protocol: no client could have asked for this."""
    return RequestOutput(request_id=submit.request_id, finish_reason="error", error=reason)


def _collect(parts: list[Scheduled], scoring: ScoringOutput) -> None:
    """Give each sequence the scores of its prompt."""
    begin = 0
    for part in parts:
        if (scores := part.sequence.prompt_scores) is not None and (due := due_positions(part)):
            rows = slice(begin, begin + len(due))
            begin += len(due)
            top_tokens = scoring.top_tokens[rows, : scores.alternatives]
            part_scores = PromptLogprobs(
                logprobs=scoring.logprobs[rows].astype("<f4").tobytes(),
                alternatives=top_tokens.shape[1],
                top_tokens=top_tokens.astype("<i4").tobytes(),
                top_logprobs=scoring.top_logprobs[rows, : scores.alternatives].astype("<f4").tobytes(),
            )
            scores.add(part_scores)


def _token_logprobs(sequence: Sequence, token: int, output: StepOutput, row: int) -> tuple[TokenLogprobs, ...]:
    wanted = sequence.sampling.logprobs
    if wanted is None or output.logprobs is None:
        return ()
    top_tokens: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()
    if wanted and output.top_tokens is not None and output.top_logprobs is not None:
        top_tokens = tuple(output.top_tokens[row, :wanted].tolist())
        top_logprobs = tuple(output.top_logprobs[row, :wanted].tolist())
    return (TokenLogprobs(token, float(output.logprobs[row]), top_tokens, top_logprobs),)
