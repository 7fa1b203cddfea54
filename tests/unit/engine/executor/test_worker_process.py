"""A worker's end reaches it in every phase of its life: told to stop, its launcher's socket at its end, or its parent killed."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from enginehouse_engine.executor.contract import StepInput
from enginehouse_engine.executor.multiprocess import MultiprocessExecutor
from logged_process import watched
from rank_processes import PATIENCE_SECONDS, Rank

PARENT = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"


def be_the_core(rank: Rank, stack: contextlib.ExitStack) -> None:
    executor = MultiprocessExecutor(rank.config, rank=0, incarnation=1, rendezvous=rank)
    stack.callback(executor.shutdown)
    executor.determine_available_memory()
    executor.initialize_kv_cache(10)
    one = np.ones(1, np.int32)
    executor.execute_model(
        StepInput(tokens=one, query_lengths=one, context_lengths=one, block_tables=np.ones((1, 1), np.int32), choosing=1)
    )
    executor.check_health()


@pytest.mark.parametrize("end", ["stop", "the launcher's socket closes", "the parent is killed"])
@pytest.mark.parametrize(
    "phase", ["imports", "waits for peers", "attaches", "loads", "waits for a worker that does not come", "computes", "is idle"]
)
def test_the_end_reaches_a_worker_that(phase: str, end: str, make_rank, small_models: dict[str, Path]) -> None:  # type: ignore[no-untyped-def]
    stages = {"imports": "make", "attaches": "meet", "loads": "load", "computes": "execute_model"}
    if phase == "waits for a worker that does not come":
        # The real thing: torch's own wait.
        rank = make_rank(2, behaviours={0: None, 1: "load=hang"}, model_path=str(small_models["llama"]))
        rank.start_worker(1)
    else:
        rank = make_rank(1, behaviours={0: f"{stages[phase]}=hang" if phase in stages else ""})
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *rank.worker_command(0)], env=rank.environment)
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        stack.callback(parent.wait)
        stack.callback(parent.kill)
        core = None if phase in ("imports", "waits for peers") else pool.submit(be_the_core, rank, stack)
        if phase == "waits for peers":
            rank.said("worker", 0, "published")
        else:
            rank.said("worker", 0, "stage", stage=stages.get(phase, "load"))
        if core is not None and phase == "is idle":
            assert core.exception(PATIENCE_SECONDS) is None
        exited = stack.enter_context(watched(rank.pids["worker", 0]))
        match end:
            case "stop":
                rank.say("worker", 0, "stop")
            case "the launcher's socket closes":
                rank.controls["worker", 0].shutdown(socket.SHUT_RDWR)
            case _:
                parent.kill()
        assert exited()
        assert rank.last_words("worker", 0) == (b"bye\n" if end == "stop" else b"")
        if core is not None and phase != "is idle":
            assert "worker 0" in str(core.exception(PATIENCE_SECONDS))
