"""How workers meet: on the loopback address, within a deadline, and with the names of those that did not come."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest
import torch

from enginehouse_engine.config import EngineConfig, MembersConfig, ParallelConfig
from enginehouse_engine.executor.contract import ExecutorFailure
from enginehouse_engine.executor.model_worker import ModelWorker
from enginehouse_engine.model.parallel import LOOPBACK, SOLO, Position, bind_store, join

CPU = torch.device("cpu")


def test_a_rank_of_one_worker_meets_nobody_and_exchanges_nothing() -> None:
    assert join("nowhere", position=Position(), device=CPU, deadline_seconds=0) is SOLO
    tensor = torch.ones(2, 3)
    assert SOLO.all_reduce(tensor) is tensor
    assert SOLO.gather(tensor) is tensor
    assert SOLO.smallest(7) == 7


def test_a_worker_that_is_alone_binds_no_store() -> None:
    config = EngineConfig(
        replica_uid="uid", model_path="", model_uri="", served_model_name="s", executor="Multiprocess", memory_budget_bytes=1 << 30
    )
    assert ModelWorker(config, rank=0, index=0, stage=print, deadline=0.0).record == {}
    of_two = msgspec.structs.replace(config, parallel=ParallelConfig(tensor=2))
    assert "store" in ModelWorker(of_two, rank=0, index=0, stage=print, deadline=0.0).record


def test_the_store_listens_on_the_loopback_address_alone() -> None:
    _store, address = bind_store()
    host, port = address.split(":")
    assert host == "127.0.0.1"
    with socket.create_connection((host, int(port)), timeout=10):
        pass
    with contextlib.closing(socket.socket()) as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", int(port)))


def test_the_store_of_a_rank_in_several_members_listens_where_they_reach_it() -> None:
    config = EngineConfig(
        replica_uid="uid", model_path="", model_uri="", served_model_name="s", executor="Ray", memory_budget_bytes=1 << 30,
        parallel=ParallelConfig(tensor=2), members=MembersConfig(count=2, workers_each=1, address="127.0.0.7"),
    )  # fmt: skip
    assert ModelWorker(config, rank=0, index=0, stage=print, deadline=0.0).record["store"].startswith("127.0.0.7:")
    together = msgspec.structs.replace(config, members=MembersConfig(count=2, workers_each=2, address="127.0.0.7"))
    assert ModelWorker(together, rank=0, index=0, stage=print, deadline=0.0).record["store"].startswith("127.0.0.1:")


def test_who_is_missing_at_the_deadline_is_named() -> None:
    store, _ = bind_store()
    position = Position.of(0, tensor_size=2, pipeline_size=2)
    store.set("worker 2", "here")
    with pytest.raises(ExecutorFailure, match=r"worker 0 waited 0\.2 s .* missing of 4 are 1, 3$"):
        join(store, position=position, device=CPU, deadline_seconds=0.2)


def test_a_store_that_nobody_listens_at_is_named_at_the_deadline() -> None:
    position = Position.of(1, tensor_size=2, pipeline_size=1)
    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ExecutorFailure, match=f"worker 1 cannot reach the store that worker 0 published at '{address}'"):
            join(address, position=position, device=CPU, deadline_seconds=0.5)
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:http"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ExecutorFailure, match="cannot reach the store"):
        join(address, position=Position.of(1, tensor_size=2, pipeline_size=1), device=CPU, deadline_seconds=0.5)


@pytest.mark.parametrize("host", [LOOPBACK, "::1"])
def test_workers_that_meet_listen_on_one_address_alone(host: str) -> None:
    store, address = bind_store(host)
    results: dict[int, tuple[list[float], set[str]]] = {}

    def meet(index: int) -> None:
        position = Position.of(index, tensor_size=2, pipeline_size=1)
        parallel = join(store if index == 0 else address, position=position, device=CPU, deadline_seconds=60, host=host)
        results[index] = parallel.all_reduce(torch.ones(2)).tolist(), listening_addresses()

    threads = [threading.Thread(target=meet, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {0: ([2.0, 2.0], {host}), 1: ([2.0, 2.0], {host})}


def listening_addresses() -> set[str]:
    """Of this process's TCP sockets (proc(5), net/tcp)."""
    links = [Path(entry.path) for entry in os.scandir("/proc/self/fd")]
    own = set()
    for link in links:
        with contextlib.suppress(OSError):
            own.add(str(link.readlink()))
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                words = bytes.fromhex(fields[1].partition(":")[0])
                found.add(socket.inet_ntop(family, b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))))
    return found
