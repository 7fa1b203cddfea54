"""The executor Multiprocess with real worker processes and a model that stands in: calls, failures, deadlines, nothing left."""

from __future__ import annotations

import dataclasses
import os
import select
from pathlib import Path

import numpy as np
import pytest

from enginehouse_engine.executor import multiprocess
from enginehouse_engine.executor.contract import Executor, ExecutorFailure, SamplingInput, StepInput, StepOutput
from enginehouse_engine.executor.multiprocess import MultiprocessExecutor
from enginehouse_engine.executor.simulated import SimulatedExecutor
from enginehouse_engine.shared_memory_size import RESPONSE_RING_BYTES
from rank_processes import PATIENCE_SECONDS, Rank


def step(tokens: int = 3) -> StepInput:
    return StepInput(
        tokens=np.arange(tokens, dtype=np.int32),
        query_lengths=np.array([tokens], np.int32),
        context_lengths=np.array([tokens], np.int32),
        block_tables=np.arange(1, 20, dtype=np.int32).reshape(1, -1),
        choosing=1,
    )


def decoding(turn: int, *, sequences: int = 64, alternatives: int = 20) -> StepInput:
    """One token more for each, other ones each time, and everybody wants to see log probabilities."""
    zeros, ones = np.zeros(sequences, np.float32), np.ones(sequences, np.float32)
    none = np.zeros(0, np.int32)
    return StepInput(
        tokens=(np.arange(sequences, dtype=np.int32) * 31 + turn * 7) % 256,
        query_lengths=np.ones(sequences, np.int32),
        context_lengths=np.full(sequences, 1, np.int32),
        block_tables=np.arange(1, sequences + 1, dtype=np.int32).reshape(-1, 1),
        choosing=sequences,
        sampling=SamplingInput(
            temperature=zeros,
            top_k=np.zeros(sequences, np.int32),
            top_p=ones,
            min_p=zeros,
            uniform=np.zeros(sequences),
            presence_penalty=zeros,
            frequency_penalty=zeros,
            repetition_penalty=ones,
            history_rows=none,
            history_tokens=none,
            history_generated=np.zeros(0, np.bool_),
            bias_rows=none,
            bias_tokens=none,
            bias_values=np.zeros(0, np.float32),
            logprobs=alternatives,
        ),
    )


def arrays(output: StepOutput) -> list[np.ndarray]:  # type: ignore[type-arg]  # of several types
    return [array for field in dataclasses.fields(output) if (array := getattr(output, field.name)) is not None]


def start(rank: Rank) -> MultiprocessExecutor:
    rank.start_workers()
    return MultiprocessExecutor(rank.config, rank=0, incarnation=1, rendezvous=rank)


def bring_to_step(executor: Executor) -> None:
    executor.determine_available_memory()
    executor.initialize_kv_cache(100)


def run_all(rank: Rank) -> None:
    """Everything that a core does."""
    executor = start(rank)
    try:
        bring_to_step(executor)
        executor.execute_model(step())
    finally:
        executor.shutdown()


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_compute_what_one_process_computes_and_all_answer_a_call(make_rank, workers: int) -> None:  # type: ignore[no-untyped-def]
    rank = make_rank(workers, behaviours={})
    alone = SimulatedExecutor(rank.config)
    executor = start(rank)
    assert executor.determine_available_memory() == alone.determine_available_memory() * workers
    for each in (executor, alone):
        each.initialize_kv_cache(100)
    for tokens in (1, 7, 200):
        assert executor.execute_model(step(tokens)).tokens.tolist() == alone.execute_model(step(tokens)).tokens.tolist()
    executor.check_health()
    values = executor.collective_rpc("echo", "text", np.arange(3))
    assert [(index, text, array.tolist()) for index, text, array in values] == [(i, "text", [0, 1, 2]) for i in range(workers)]
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(ExecutorFailure, match="was shut down"):
        executor.check_health()


def test_log_probabilities_that_are_held_while_decoding_goes_on_stall_nothing_and_stay_as_they_were(make_rank) -> None:  # type: ignore[no-untyped-def]
    """Four times through the ring of answers; nobody may wait for what is held, nor write where it is."""
    executor = start(make_rank(1, behaviours={}))
    alone = SimulatedExecutor(executor._config)
    for each in (executor, alone):
        bring_to_step(each)
    held: list[StepOutput] = []
    wanted: list[StepOutput] = []
    while sum(array.nbytes for output in held for array in arrays(output)) < 4 * RESPONSE_RING_BYTES:
        held.append(executor.execute_model(decoding(len(held))))
        wanted.append(alone.execute_model(decoding(len(wanted))))
    executor.shutdown()
    assert len({output.top_tokens.tobytes() for output in held if output.top_tokens is not None}) > 100, "not all the same"
    for output, other in zip(held, wanted, strict=True):
        assert [array.tolist() for array in arrays(output)] == [array.tolist() for array in arrays(other)]
        assert all(array.flags.writeable for array in arrays(output)), "its own"


@pytest.mark.parametrize("method", ["load", "profile", "initialize_kv_cache", "execute_model"])
@pytest.mark.parametrize("culprit", [0, 2])
def test_an_exception_in_any_worker_reaches_the_caller_while_the_others_hang(make_rank, method: str, culprit: int) -> None:  # type: ignore[no-untyped-def]
    behaviours = dict.fromkeys(range(3), f"{method}=hang") | {culprit: f"{method}=raise"}
    rank = make_rank(3, behaviours=behaviours)
    with pytest.raises(ExecutorFailure, match=f"worker {culprit} failed: Traceback") as raised:
        run_all(rank)
    assert f"RuntimeError: on purpose in worker {culprit}" in str(raised.value)
    said = rank.said("worker", culprit, "failed")
    assert said["class"] == "Exception"
    assert f"on purpose in worker {culprit}" in said["message"]
    assert rank.exit_code("worker", culprit) == 1
    assert rank.last_words("worker", culprit) == b"", "no bye before a failure"


@pytest.mark.parametrize("method", ["load", "profile", "initialize_kv_cache", "execute_model"])
@pytest.mark.parametrize("culprit", [0, 2])
def test_a_worker_killed_in_any_call_ends_the_call_and_is_named(make_rank, method: str, culprit: int) -> None:  # type: ignore[no-untyped-def]
    behaviours = dict.fromkeys(range(3), f"{method}=hang") | {culprit: f"{method}=kill"}
    with pytest.raises(ExecutorFailure, match=f"worker {culprit} is gone: queue 'answers' of worker {culprit} of rank 0"):
        run_all(make_rank(3, behaviours=behaviours))


def test_what_cannot_work_in_a_worker_cannot_work_in_the_core(make_rank) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ExecutorFailure, match="worker 1 cannot work so") as raised:
        run_all(make_rank(2, behaviours={0: "load=hang", 1: "load=config"}))
    assert raised.value.failure_class == "InvalidConfig"


def test_a_worker_that_dies_while_idle_is_noticed_by_the_descriptor(make_rank) -> None:  # type: ignore[no-untyped-def]
    rank = make_rank(2, behaviours={})
    executor = start(rank)
    bring_to_step(executor)
    executor.execute_model(step())
    executor.attend()
    assert select.select([executor.fileno()], [], [], 0)[0] == []
    rank.kill(1)
    assert select.select([executor.fileno()], [], [], PATIENCE_SECONDS)[0]
    with pytest.raises(ExecutorFailure, match="worker 1 is gone"):
        executor.attend()
    with pytest.raises(ExecutorFailure, match="worker 1 is gone"):
        executor.execute_model(step())
    executor.shutdown()


def test_a_worker_that_does_not_answer_is_named_at_the_deadline(make_rank, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(multiprocess, "STEP_SECONDS", 0.2)
    monkeypatch.setattr(multiprocess, "HEALTH_SECONDS", 0.2)
    with pytest.raises(ExecutorFailure, match=r"no answer to a step in 0\.2 s from worker 0"):
        run_all(make_rank(2, behaviours={0: "execute_model=hang"}))
    executor = start(make_rank(2, behaviours={1: "check_health=hang"}))
    with pytest.raises(ExecutorFailure, match=r"no answer to check_health in 0\.2 s from worker 1$"):
        executor.check_health()
    executor.shutdown()


@pytest.mark.parametrize(
    ("behaviour", "words"), [("meet=hang", "worker 1 .* did not answer"), ("load=hang", "no answer to load in .* s from worker 1")]
)
def test_a_worker_that_is_late_is_named_at_the_start_up_deadline(make_rank, behaviour: str, words: str) -> None:  # type: ignore[no-untyped-def]
    # Worker 0 has to be done by then, on a busy machine too.
    rank = make_rank(2, behaviours={1: behaviour}, startup_timeout_seconds=15.0)
    with pytest.raises(ExecutorFailure, match=words) as raised:
        run_all(rank)
    assert "worker 0" not in str(raised.value)
    assert raised.value.failure_class == "StartupTimeout"


def shared_memory() -> set[str]:
    """What this process maps of the volume; other tests of the same process leave semaphores of their own there."""
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line}


def test_nothing_is_left_behind(make_rank) -> None:  # type: ignore[no-untyped-def]
    rank = make_rank(2, behaviours={})
    rank.start_workers()
    for index in range(2):
        rank.said("worker", index, "published")
    before, mapped_before = set(os.listdir("/proc/self/fd")), shared_memory()
    executor = MultiprocessExecutor(rank.config, rank=0, incarnation=1, rendezvous=rank)
    bring_to_step(executor)
    executor.execute_model(step())
    assert shared_memory() - mapped_before, "the rings are there while it lives"
    executor.shutdown()
    assert set(os.listdir("/proc/self/fd")) <= before
    assert shared_memory() <= mapped_before
    for index in range(2):
        rank.say("worker", index, "stop")
        assert rank.exit_code("worker", index) == 0
        assert rank.last_words("worker", index) == b"bye\n"


def test_peers_of_another_incarnation_are_refused(make_rank) -> None:  # type: ignore[no-untyped-def]
    rank = make_rank(1, behaviours={})
    rank.start_worker(0)
    rank.said("worker", 0, "published")
    rank.introduce(incarnation=2)
    assert "'incarnation': 1} were expected, found those of" in rank.said("worker", 0, "failed")["message"]
    assert rank.exit_code("worker", 0) == 1
