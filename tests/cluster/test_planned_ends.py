"""Planned ends under load, from a client that keeps connections and does not retry: no request is lost, a 503 counts as one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

import simulated_engine
from request_load import Kind, Load
from simulated_engine import all_serve, change, evict, pods

pytestmark = pytest.mark.cluster

DRAIN = {"timeoutSeconds": 30}
"""Long enough for endpoints that settle late, on a busy machine."""


@contextmanager
def under_load(space: Any) -> Iterator[Load]:
    """Requests through the engine's service, all of them answered."""
    with space.installation.reached("sim", namespace=space.namespace) as url, Load(url) as load:
        yield load
        load.stop()
        judge(load, "the end")


def do(space: Any, load: Load, what: str, *, act: Callable[[], object], until: Callable[[], bool]) -> None:
    """Something planned, and not a single request that was not answered."""
    began = time.monotonic()
    act()
    space.eventually(f"{what} is over", until, seconds=120)
    answered = judge(load, what)
    print(f"{what}: {answered} requests in {time.monotonic() - began:.1f} s")
    assert answered


def judge(load: Load, what: str) -> int:
    """How many were answered since the last look: all."""
    outcomes = load.taken()
    lost = [str(outcome) for outcome in outcomes if outcome.kind is not Kind.ANSWERED]
    assert not lost, f"{what}: of {len(outcomes)} requests, {len(lost)} were lost: {lost[:8]}"
    return len(outcomes)


def replica_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["enginehouse.dev/replica"])


def test_no_request_is_lost_while_another_replica_serves(space: Any) -> None:
    space.apply(simulated_engine.manifest(replicas=3, rollout={"maxUnavailable": 2}, drain=DRAIN))
    space.wait("Ready", name="sim")
    with under_load(space) as load:
        first, second, _ = leaders = pods(space)

        def remove_two() -> None:
            space.kubectl("delete", "pod", first, "--wait=false")
            space.kubectl("delete", "ier", replica_of(leaders[second]), "--wait=false")

        do(
            space,
            load,
            "a deleted pod and a deleted EngineReplica",
            act=remove_two,
            until=lambda: all_serve(space, replicas=3, gone=(first, second)),
        )
        old = pods(space)
        do(
            space,
            load,
            "a rollout",
            act=lambda: change(space, {"context": {"maxLength": 1024}}),
            until=lambda: all_serve(space, replicas=3, gone=old),
        )
        evicted = next(iter(pods(space)))
        do(
            space,
            load,
            "an eviction",
            act=lambda: evict(space, evicted),
            until=lambda: all_serve(space, replicas=3, gone=(evicted,)),
        )
        do(
            space,
            load,
            "a scale-down from 3 to 1",
            act=lambda: change(space, {"replicas": 1}),
            until=lambda: len(space.items("pods")) == 1,
        )


def test_a_member_that_is_evicted_ends_its_replica_without_a_lost_request(space: Any) -> None:
    space.apply(simulated_engine.manifest(replicas=2, parallelism={"data": 2, "tensor": 2, "workersPerMember": 2}, drain=DRAIN))
    space.wait("Ready", name="sim")
    with under_load(space) as load:
        worker, pod = next(iter(pods(space, role="worker").items()))
        leader = next(name for name, one in pods(space).items() if replica_of(one) == replica_of(pod))
        do(
            space,
            load,
            "the eviction of a worker",
            act=lambda: evict(space, worker),
            until=lambda: all_serve(space, replicas=2, gone=(leader, worker)),
        )


class SlowReader:
    """A stream whose client reads its beginning, and the rest when it is asked to: until then the request is under way."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        # Eight answers of thousands of tokens: more than what the sockets between hold.
        body = {
            "model": "simulated",
            "prompt": [65],
            "n": 8,
            "max_tokens": 6000,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
        }
        data = json.dumps(body).encode()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        self._socket.settimeout(60)
        self._socket.connect((place.hostname, place.port or 80))
        self._socket.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        self._read = self._socket.recv(4096)

    def rest(self) -> bytes:
        """To the end of the connection; all that was read."""
        parts = [self._read]
        while part := self._socket.recv(1 << 20):
            parts.append(part)
        self._socket.close()
        return b"".join(parts)


def refused(url: str) -> bool:
    """By a leader that accepts nothing new: cleanly, and with the advice to try again, elsewhere."""
    answer = httpx.post(f"{url}/v1/completions", json={"model": "simulated", "prompt": [65], "max_tokens": 1})
    if answer.status_code == 200:
        return False
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining"), answer.text
    assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
    return True


def nobody_listens(url: str) -> bool:
    """Refused, or not answered at all: the kernel does not send every refusal."""
    try:
        httpx.get(f"{url}/health")
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return True
    return False


def test_the_last_replica_finishes_what_is_under_way_and_refuses_the_rest(space: Any) -> None:
    """Suspended, and deleted with its engine."""
    space.apply(*(simulated_engine.manifest(name, drain={"timeoutSeconds": 60}) for name in ("suspended", "deleted")))
    readers = []
    for name in ("suspended", "deleted"):
        space.wait("Ready", name=name)
        ((_, pod),) = pods(space, name=name).items()
        with space.installation.reached(name, namespace=space.namespace) as url:
            readers.append((simulated_engine.address(pod), SlowReader(url)))
    change(space, {"suspend": True}, name="suspended")
    with space.installation.reached("suspended", namespace=space.namespace) as url:
        space.kubectl("delete", "ie/deleted", "--wait=false")
        space.eventually("the service refuses connections", lambda: nobody_listens(url))
    for address, reader in readers:
        space.eventually("the leader refuses requests", lambda address=address: refused(address))
        said = reader.rest()
        assert said.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), said[-300:]
    space.eventually("no pod is left", lambda: not space.items("pods"))
