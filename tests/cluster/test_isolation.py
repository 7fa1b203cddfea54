"""A death costs the requests that it must, and no others: of another replica, another rank, another API server."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import pytest

import simulated_engine
from request_load import Kind, Load, Outcome
from simulated_engine import address, pods, ranks

pytestmark = pytest.mark.cluster

CLIENTS = 8

# Run inside a pod: of two API servers, kill the one with fewer clients, and say on which ports those are.
KILL_AN_API_SERVER = """
import json, os, signal
connections = {}
for line in open('/proc/net/tcp').readlines()[1:]:
    words = line.split()
    if words[3] == '01' and words[1].endswith(':1F40'):  # established, on port 8000
        connections['socket:[%s]' % words[9]] = int(words[2].split(':')[1], 16)
servers = {}
for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
    if pid != os.getpid() and 'enginehouse_engine.api.process' in open(f'/proc/{pid}/cmdline').read().split('\\0'):
        paths = [f'/proc/{pid}/fd/{one}' for one in os.listdir(f'/proc/{pid}/fd')]
        opened = {os.readlink(path) for path in paths if os.path.lexists(path)}
        servers[pid] = [connections[one] for one in opened & connections.keys()]
victim = min(servers, key=lambda pid: len(servers[pid]))
os.kill(victim, signal.SIGKILL)
dead = servers.pop(victim)
print(json.dumps([dead, sum(servers.values(), [])]))
"""


def not_answered(outcomes: list[Outcome]) -> list[str]:
    return [str(outcome) for outcome in outcomes if outcome.kind is not Kind.ANSWERED]


def lost(outcomes: list[Outcome]) -> list[str]:
    return [str(outcome) for outcome in outcomes if outcome.kind is Kind.LOST]


def until_answered(space: Any, load: Load) -> list[Outcome]:
    """What ended until somebody had an answer to a request."""
    outcomes: list[Outcome] = []

    def answered() -> bool:
        new = load.taken()
        outcomes.extend(new)
        return any(outcome.kind is Kind.ANSWERED for outcome in new)

    space.eventually("an answer", answered)
    return outcomes


def test_a_replica_loses_no_request_when_the_engine_core_of_another_dies(space: Any) -> None:
    space.apply(simulated_engine.manifest(replicas=2))
    space.wait("Ready", name="sim")
    (doomed, its_pod), (_, other) = pods(space).items()
    with Load(address(its_pod)) as hit, Load(address(other)) as spared:
        assert not not_answered(until_answered(space, hit))
        space.installation.kill_engine_cores(doomed, namespace=space.namespace)
        space.eventually("the rank is back", lambda: ranks(space) == [(0, 1, "Serving"), (0, 2, "Serving")])
        ended = hit.taken() + until_answered(space, hit)
        hit.stop()
        spared.stop()
        assert not lost(ended + hit.taken())
        assert not_answered(ended), "nobody was under way"
        others = spared.taken()
        assert others
        assert not not_answered(others)


def test_ranks_and_api_servers_of_a_replica_lose_no_request_of_each_other(space: Any) -> None:
    space.apply(simulated_engine.manifest(parallelism={"data": 2}, apiServers=2))
    space.wait("Ready", name="sim")
    ((pod, found),) = pods(space).items()
    with ExitStack() as stack:
        # A connection each: an API server keeps the clients that it has.
        loads = [stack.enter_context(Load(address(found), clients=1)) for _ in range(CLIENTS)]
        for load in loads:
            assert not not_answered(until_answered(space, load))

        space.installation.kill_engine_cores(pod, namespace=space.namespace, rank=0)
        space.eventually("rank 0 is back", lambda: ranks(space) == [(0, 2, "Serving"), (1, 1, "Serving")])
        for load in loads:
            refused = [outcome for outcome in load.taken() + until_answered(space, load) if outcome.kind is not Kind.ANSWERED]
            assert not lost(refused)
            assert len(refused) <= 1, "rank 1 serves all that come after the death"
            assert all("engine core of rank 0 is gone" in outcome.words for outcome in refused)

        command = ("exec", pod, "-c", "engine", "--", "python3", "-c", KILL_AN_API_SERVER)
        before = [until_answered(space, load)[-1].port for load in loads]
        dead, living = json.loads(space.kubectl(*command))
        assert living, "no client was connected to the other API server"
        for load, port in zip(loads, before, strict=True):
            ended = load.taken() + until_answered(space, load)
            assert len(not_answered(ended)) <= (port in dead), not_answered(ended)
