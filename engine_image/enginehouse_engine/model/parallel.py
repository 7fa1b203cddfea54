"""How the workers of one rank exchange tensors: sums inside a pipeline stage, hidden states from stage to stage.

Invariant: a worker that is alone exchanges nothing and pays nothing. Every wait has a deadline; a worker that died is noticed by
its neighbours as soon as its sockets close. Everything listens on the loopback address, or on the pod's own where the rank spans
several, on ports that the kernel picked.
The process groups are made directly, not through ``init_process_group``: that binds gloo to whatever the host's name resolves to,
and keeps them in global state (``docs/adr/0055``).
Does not know layers or weights (``decoder.py``), nor who starts the workers.
"""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from typing import Any, Final, Protocol, cast

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined] # public and documented

from enginehouse_engine.executor.contract import ExecutorFailure
from enginehouse_engine.model.position import Position

__all__ = ["SOLO", "Parallel", "Position", "bind_store", "join"]

LOOPBACK: Final = "127.0.0.1"
_EXCHANGE_SECONDS: Final = 300.0
"""Longer than two workers can be apart in one step, or in loading their weights."""
_LISTEN_BACKLOG: Final = 128


class _Group(Protocol):
    """What is used of torch's process groups, whose stubs leave it out."""

    def allreduce(self, tensors: list[torch.Tensor], options: Any = ...) -> distributed.Work: ...

    def gather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], options: Any) -> distributed.Work: ...

    def send(self, tensors: list[torch.Tensor], to: int, tag: int) -> distributed.Work: ...

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int) -> distributed.Work: ...


class Parallel:
    """One worker's connections to the others of its rank. All of them call the same methods in the same order."""

    def __init__(
        self,
        position: Position,
        *,
        stage: _Group | None = None,
        line: _Group | None = None,
        device: torch.device | None = None,
        store: Store | None = None,
    ) -> None:
        """``stage``: the workers that share this one's layers. ``line``: those with its tensor index, one of each stage."""
        self.position = position
        self._stage = stage
        self._line = line
        self._device = device
        # Worker 0's is the server of all.
        self._store = store

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the stage's workers, in place."""
        if self._stage is not None:
            self._wait(self._stage.allreduce([tensor]), "a sum")
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The columns of all workers of the stage side by side, for its first worker; None for the others."""
        if self._stage is None:
            return tensor
        first = self.position.tensor_index == 0
        parts = [torch.empty_like(tensor) for _ in range(self.position.tensor_size)] if first else []
        options = distributed.GatherOptions()
        options.rootRank = 0
        self._wait(self._stage.gather([parts] if first else [], [tensor], options), "gathered columns")
        return torch.cat(parts, dim=-1) if first else None

    def send(self, tensor: torch.Tensor) -> None:
        """To the next stage. Only where there is one."""
        assert self._line is not None
        self._wait(self._line.send([tensor], self.position.pipeline_index + 1, 0), "sending to the next stage")

    def receive(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fill ``tensor`` with what the previous stage sends. Only where there is one."""
        assert self._line is not None
        self._wait(self._line.recv([tensor], self.position.pipeline_index - 1, 0), "receiving from the previous stage")
        return tensor

    def smallest(self, value: int) -> int:
        """The smallest value that any worker of the rank has given."""
        tensor = torch.tensor([value], device=self._device)
        options = distributed.AllreduceOptions()
        options.reduceOp = distributed.ReduceOp.MIN
        for group in (self._stage, self._line):
            if group is not None:
                self._wait(group.allreduce([tensor], options), "agreeing on a number")
        return int(tensor.item())

    def _wait(self, work: distributed.Work, what: str) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise ExecutorFailure(f"worker {self.position.index} lost another worker of its rank during {what}: {error}") from error


SOLO: Final = Parallel(Position())
"""A rank of one worker."""


def bind_store(host: str = LOOPBACK) -> tuple[Store, str]:
    """What worker 0 calls before it publishes: the store in which a rank's workers find each other, listening, and its address.

    ``host``: of this pod, where the rank has workers in others.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind((host, 0))
    listener.listen(_LISTEN_BACKLOG)
    port = listener.getsockname()[1]
    # By itself the store would listen on all addresses.
    store = TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, f"{host}:{port}"


def join(
    store: Store | str, *, position: Position, device: torch.device, deadline_seconds: float, host: str = LOOPBACK
) -> Parallel:
    """Meet the other workers of the rank. ``store`` is what :func:`bind_store` gave: worker 0 passes the store, others its address.

    ``host``: where the others reach this one. Raises ExecutorFailure when they are not all there in time; it says who is missing.
    """
    if position.workers == 1:
        return SOLO
    deadline = time.monotonic() + deadline_seconds
    if isinstance(store, str):
        store = _connect(store, position, deadline_seconds)
    _meet(store, position, deadline, deadline_seconds)

    def group(name: str, index: int, size: int) -> _Group | None:
        if size == 1:
            return None
        remaining = timedelta(seconds=max(1.0, deadline - time.monotonic()))
        return _group(PrefixStore(name, store), index, size, device, remaining, host)

    try:
        stage = group(f"stage {position.pipeline_index}", position.tensor_index, position.tensor_size)
        line = group(f"line {position.tensor_index}", position.pipeline_index, position.pipeline_size)
    except RuntimeError as error:
        raise ExecutorFailure(f"worker {position.index} cannot connect to the others of its rank: {error}") from error
    return Parallel(position, stage=stage, line=line, device=device, store=store)


def _connect(address: str, position: Position, deadline_seconds: float) -> Store:
    host, _, port = address.rpartition(":")
    try:
        return TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=deadline_seconds))
    except (ValueError, RuntimeError) as error:
        raise ExecutorFailure(
            f"worker {position.index} cannot reach the store that worker 0 published at {address!r} within "
            f"{deadline_seconds:g} s: {error}"
        ) from error


def _meet(store: Store, position: Position, deadline: float, deadline_seconds: float) -> None:
    """Wait for all workers: the groups themselves would not say who is missing."""
    everyone = {index: f"worker {index}" for index in range(position.workers)}
    try:
        store.set(everyone[position.index], "here")
        store.wait(list(everyone.values()), timedelta(seconds=max(0.001, deadline - time.monotonic())))
    except distributed.DistStoreError as error:
        missing = [str(index) for index, key in everyone.items() if not store.check([key])]
        raise ExecutorFailure(
            f"worker {position.index} waited {deadline_seconds:g} s for the other workers of its rank: missing of "
            f"{position.workers} are {', '.join(missing)}"
        ) from error
    except RuntimeError as error:
        raise ExecutorFailure(f"worker {position.index} lost the store of worker 0, which has ended: {error}") from error


def _group(store: Store, index: int, size: int, device: torch.device, connect_timeout: timedelta, host: str) -> _Group:
    exchange_timeout = timedelta(seconds=_EXCHANGE_SECONDS)
    if device.type == "cuda":
        nccl = distributed.ProcessGroupNCCL.Options()
        nccl._timeout = exchange_timeout
        return cast(_Group, distributed.ProcessGroupNCCL(store, index, size, nccl))
    options = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined] # the stubs know its former name only
    options._timeout = connect_timeout
    # By default gloo binds to what the host's name resolves to, if it does.
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname=host)]
    gloo = distributed.ProcessGroupGloo(store, index, size, options)
    gloo._set_default_timeout(exchange_timeout)
    return cast(_Group, gloo)
