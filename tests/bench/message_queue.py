"""make bench NAME=queue: round trip and throughput of the message queue beside ZMQ ipc and multiprocessing.Pipe, and its idle CPU.

The one job: two processes on this machine, the same payload over each transport, in turns within one run.
The bars are for two ends with a core each, which is how core and worker run. Beside them stand the figures for two ends that share
one, where no spin can help and a wake-up costs what it costs, and for two that the scheduler puts where it likes: it does either,
and changes its mind with the load. Which cores these were, whether two of them are one physical core, and how busy the machine was
before are in the file.
The invariant kept: what came back is what was sent; the spin is the product's own 50 us.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import record
import zmq

from enginehouse_engine.message_queue import QueueAddress, Writer, open_local_reader
from enginehouse_engine.message_queue.errors import QueueError
from enginehouse_engine.message_queue.waiting import SPIN_SECONDS
from queue_processes import CONTEXT

REPEATS = 3
ROUND_TRIPS = 2_000
WARM_UP = 200
SMALL_BYTES = 1024
LARGE_BYTES = 1024 * 1024
LARGE_MESSAGES = 400
IDLE_SECONDS = 3.0
DEADLINE_SECONDS = 60.0

Figures = dict[str, float]


def pin(cores: set[int]) -> None:
    """This thread, and the ones it starts later; ZMQ's own threads are there before and stay free."""
    os.sched_setaffinity(0, cores)


def echo_queue(pipe: Connection, cores: set[int], requests: bytes) -> None:
    """Answer every small message; of large ones only the last."""
    pin(cores)
    responses = Writer(queue="responses", writer="echo", generation=1, readers=["client"])
    pipe.send_bytes(msgspec.json.encode(responses.address))
    address = msgspec.json.decode(requests, type=QueueAddress)
    reader = open_local_reader(address, reader="echo", generation=1, deadline_seconds=DEADLINE_SECONDS)
    responses.wait_until_ready(deadline_seconds=DEADLINE_SECONDS)
    for count in range(1, WARM_UP + ROUND_TRIPS + LARGE_MESSAGES + 1):
        frames = reader.receive(deadline_seconds=DEADLINE_SECONDS).frames
        if len(frames[0]) == SMALL_BYTES or count == WARM_UP + ROUND_TRIPS + LARGE_MESSAGES:
            responses.send(frames, deadline_seconds=DEADLINE_SECONDS)


def echo_zmq(pipe: Connection, cores: set[int], endpoint: str) -> None:
    socket = zmq.Context().socket(zmq.PAIR)
    socket.connect(endpoint)
    pin(cores)
    _echo(socket.recv, socket.send)
    pipe.recv_bytes()


def echo_pipe(pipe: Connection, cores: set[int], _: str) -> None:
    pin(cores)
    _echo(pipe.recv_bytes, pipe.send_bytes)


def _echo(receive: Callable[[], bytes], send: Callable[[bytes], object]) -> None:
    for count in range(1, WARM_UP + ROUND_TRIPS + LARGE_MESSAGES + 1):
        data = receive()
        if len(data) == SMALL_BYTES or count == WARM_UP + ROUND_TRIPS + LARGE_MESSAGES:
            send(data)


def measure(send: Callable[[bytes], object], receive: Callable[[], bytes | bytearray]) -> Figures:
    small, large = os.urandom(SMALL_BYTES), os.urandom(LARGE_BYTES)
    micros = []
    for number in range(WARM_UP + ROUND_TRIPS):
        began = time.perf_counter()
        send(small)
        answer = receive()
        if number >= WARM_UP:
            micros.append((time.perf_counter() - began) * 1e6)
        if answer != small:
            raise SystemExit("another message came back")
    began = time.perf_counter()
    for _ in range(LARGE_MESSAGES):
        send(large)
    if receive() != large:
        raise SystemExit("another message came back")
    seconds = time.perf_counter() - began
    cuts = statistics.quantiles(micros, n=100)
    return {
        "p50_us": statistics.median(micros),
        "p90_us": cuts[89],
        "p99_us": cuts[98],
        "mebibytes_per_second": LARGE_MESSAGES * LARGE_BYTES / 2**20 / seconds,
    }


def run_queue(cores: set[int]) -> Figures:
    ours, theirs = CONTEXT.Pipe()
    writer = Writer(queue="requests", writer="client", generation=1, readers=["echo"])
    process = CONTEXT.Process(target=echo_queue, args=(theirs, cores, msgspec.json.encode(writer.address)))
    process.start()
    responses = msgspec.json.decode(ours.recv_bytes(), type=QueueAddress)
    writer.wait_until_ready(deadline_seconds=DEADLINE_SECONDS)
    reader = open_local_reader(responses, reader="client", generation=1, deadline_seconds=DEADLINE_SECONDS)
    figures = measure(
        lambda data: writer.send([data], deadline_seconds=DEADLINE_SECONDS),
        lambda: reader.receive(deadline_seconds=DEADLINE_SECONDS).frames[0],
    )
    process.join()
    reader.close()
    writer.close()
    return figures


def run_zmq(cores: set[int]) -> Figures:
    ours, theirs = CONTEXT.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{Path(folder, 'peer')}"
        socket = zmq.Context.instance().socket(zmq.PAIR)
        socket.bind(endpoint)
        process = CONTEXT.Process(target=echo_zmq, args=(theirs, cores, endpoint))
        process.start()
        figures = measure(socket.send, socket.recv)
        ours.send_bytes(b"done")
        process.join()
        socket.close()
    return figures


def run_pipe(cores: set[int]) -> Figures:
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=echo_pipe, args=(theirs, cores, ""))
    process.start()
    figures = measure(ours.send_bytes, ours.recv_bytes)
    process.join()
    return figures


def thread_siblings(core: int) -> str:
    """The processors that are threads of the same physical core, as the kernel lists them."""
    return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text().strip()


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def wait_for_nothing(wait: Callable[[], object]) -> float:
    """Percent of a core that this process takes while it waits in vain."""
    before, began = cpu_seconds(), time.monotonic()
    try:
        wait()
    except QueueError:
        return (cpu_seconds() - before) / (time.monotonic() - began) * 100
    raise SystemExit("what was waited for came")


def idle_reader(pipe: Connection, address: bytes) -> None:
    queue = msgspec.json.decode(address, type=QueueAddress)
    reader = open_local_reader(queue, reader="idle", generation=1, deadline_seconds=DEADLINE_SECONDS)
    percent = wait_for_nothing(lambda: reader.receive(deadline_seconds=IDLE_SECONDS))
    pipe.send_bytes(json.dumps(percent).encode())


def run_idle() -> Figures:
    ours, theirs = CONTEXT.Pipe()
    writer = Writer(queue="idle", writer="client", generation=1, readers=["idle", "never"])
    process = CONTEXT.Process(target=idle_reader, args=(theirs, msgspec.json.encode(writer.address)))
    process.start()
    while "idle" not in writer.attached():
        writer.attend()
    writer_percent = wait_for_nothing(lambda: writer.wait_until_ready(deadline_seconds=IDLE_SECONDS))
    reader_percent = float(json.loads(ours.recv_bytes()))
    process.join()
    writer.close()
    return {"reader_percent": reader_percent, "writer_percent": writer_percent}


def main() -> int:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise SystemExit("two processors are wanted, one for each end; found one")
    zmq.Context.instance().socket(zmq.PAIR).close()  # Starts ZMQ's threads.
    busy = os.getloadavg()[0]
    placements = {
        "apart": ({allowed[0]}, {allowed[1]}),
        "together": ({allowed[0]}, {allowed[0]}),
        "anywhere": (set(allowed), set(allowed)),
    }
    runs: dict[str, dict[str, list[Figures]]] = {place: {"queue": [], "zmq ipc": [], "pipe": []} for place in placements}
    for _ in range(REPEATS):
        for place, (ours, theirs) in placements.items():
            pin(ours)
            for name, run in (("queue", run_queue), ("zmq ipc", run_zmq), ("pipe", run_pipe)):
                runs[place][name].append(run(theirs))
    pin(set(allowed))
    for place, by_name in runs.items():
        for name, figures in by_name.items():
            print(place, name, *(f"{key} {statistics.median(run[key] for run in figures):.1f}" for key in figures[0]))
    idle = run_idle()

    def ratio(place: str, peer: str, key: str) -> float:
        pairs = zip(runs[place][peer], runs[place]["queue"], strict=True)
        return statistics.median(theirs[key] / ours[key] for theirs, ours in pairs)

    figures: dict[str, Any] = {
        "spin_us": SPIN_SECONDS * 1e6,
        "cores": {place: {"client": sorted(ours), "echo": sorted(theirs)} for place, (ours, theirs) in placements.items()},
        "threads of the physical core of each": {core: thread_siblings(core) for core in allowed[:2]},
        "load before": busy,
        "runs": runs,
        "p50 of the peer over the queue's": {
            place: {peer: ratio(place, peer, "p50_us") for peer in ("zmq ipc", "pipe")} for place in placements
        },
        "throughput at 1 MiB over ZMQ's": {place: 1 / ratio(place, "zmq ipc", "mebibytes_per_second") for place in placements},
        "idle": idle,
    }
    bars = [
        record.at_least(
            "round trip of 1 KiB, a core each, p50 of ZMQ ipc over the queue's",
            ratio("apart", "zmq ipc", "p50_us"),
            limit=3,
            unit="x",
        ),
        record.at_least(
            "throughput at 1 MiB, a core each, over ZMQ ipc's",
            figures["throughput at 1 MiB over ZMQ's"]["apart"],
            limit=1,
            unit="x",
        ),
        record.at_most("spin", SPIN_SECONDS * 1e6, limit=50, unit="us"),
        record.at_most("idle reader", idle["reader_percent"], limit=1, unit="% of a core"),
        record.at_most("idle writer", idle["writer_percent"], limit=1, unit="% of a core"),
    ]
    return record.write("queue", figures=figures, bars=bars, repeats=REPEATS, packages=("pyzmq", "msgspec"))


if __name__ == "__main__":
    sys.exit(main())
