"""Kill anything, again and again, under load: every request ends, every death is told once, and nothing is left behind."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

import simulated_engine
from bench import pod_processes
from request_load import Kind, Load, Outcome

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]

SHAPE: Final = {"data": 2, "tensor": 2, "workersPerMember": 2}
MEMBERS: Final = 2
ROLES: Final = {
    "enginehouse_engine": "launcher",
    "enginehouse_engine.api.process": "api-server",
    "enginehouse_engine.core.process": "engine-core",
    "enginehouse_engine.executor.worker_process": "worker",
    "enginehouse_operator.monitor": "monitor",
}
WHOLE: Final = Counter({"launcher": 2, "monitor": 2, "api-server": 2, "engine-core": 2, "worker": 4})
"""The processes of one replica."""
LIVES_IN_CONNECTIONS: Final = ("launcher", "api-server")
"""Whoever talks to one of these when it is killed sees the connection end: nobody is left to send an error."""
RESET_SECONDS: Final = 5.0
"""After such a kill."""
CALM_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Kill:
    """One kill -9; the pid is the process's own, in its container."""

    at: float
    replica: str
    member: str
    role: str
    pid: int


@dataclass
class World:
    """What the API and the kernel show of one engine, and what they ever showed of failures."""

    space: Any
    failures: set[tuple[str, str, int | None]] = field(default_factory=set)
    """Member, role, pid."""
    ended: set[str] = field(default_factory=set)
    """Replicas that were ever asked to end."""
    pod_uids: set[str] = field(default_factory=set)
    replicas: list[dict[str, Any]] = field(default_factory=list)
    pods: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By their replica."""

    def look(self) -> None:
        listed = self.space.items("ier,pods")
        self.replicas = [item for item in listed if item["kind"] == "EngineReplica"]
        self.pods = {}
        for pod in (item for item in listed if item["kind"] == "Pod"):
            self.pods.setdefault(pod["metadata"]["labels"]["enginehouse.dev/replica"], []).append(pod)
            self.pod_uids.add(pod["metadata"]["uid"])
        self.ended |= {item["metadata"]["name"] for item in self.replicas if "end" in item["spec"]}
        for item in self.replicas:
            records = [item["spec"].get("end", {}).get("failure"), *item["spec"].get("failures", [])]
            records += [
                {**one, "member": row["name"]} for row in item.get("status", {}).get("members", []) for one in row["failures"]
            ]
            self.failures |= {(one.get("member", ""), one.get("role", ""), one.get("pid")) for one in records if one}

    def whole(self) -> list[str]:
        """Replicas of which everything serves and nobody has left."""
        found = []
        for item in self.replicas:
            rows = item.get("status", {}).get("members", [])
            states = [rank["state"] for row in rows for rank in row["ranks"]]
            pods = self.pods.get(item["metadata"]["name"], [])
            serving = len(rows) == len(pods) == MEMBERS and set(states) == {"Serving"} and not item["spec"].get("end")
            if serving and all(_is_ready(pod) for pod in pods) and Counter(role for _, role, _ in self._processes(pods)) == WHOLE:
                found.append(item["metadata"]["name"])
        return sorted(found)

    def kill_one(self, replica: str, *, draw: random.Random) -> Kill:
        """A role first, so that the few are killed as often as the many."""
        found = self._processes(self.pods[replica])
        role = draw.choice(sorted(WHOLE))
        member, _, pid = draw.choice([one for one in found if one[1] == role])
        inside = int(re.findall(r"^NSpid:.*\t(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0])
        with pod_processes.pidfds([pid]) as opened:
            pod_processes.kill(opened[pid])
        return Kill(time.monotonic(), replica, member, role, inside)

    def left_behind(self) -> list[str]:
        """Processes of pods that ever were."""
        return [f"{uid}: {found}" for uid in self.pod_uids for found in pod_processes.of_pod(uid)]

    def shared_memory(self) -> dict[str, list[str]]:
        """Files in the pods' /dev/shm, by member."""
        found = {}
        for pod in (pod for pods in self.pods.values() for pod in pods):
            launchers = [one.pid for one in pod_processes.of_pod(pod["metadata"]["uid"]) if ROLES.get(one.module) == "launcher"]
            found[pod["metadata"]["name"]] = [
                file.name for pid in launchers for file in Path(f"/proc/{pid}/root/dev/shm").iterdir()
            ]
        return found

    @staticmethod
    def _processes(pods: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
        """Member, role, pid."""
        return [
            (pod["metadata"]["name"], ROLES[found.module], found.pid)
            for pod in pods
            for found in pod_processes.of_pod(pod["metadata"]["uid"])
            if found.module in ROLES
        ]


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = {entry["type"]: entry["status"] for entry in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def answered(pods: list[dict[str, Any]]) -> float:
    """Answers of ordinary length that these leaders count."""
    total = 0.0
    for pod in pods:
        text = httpx.get(f"{simulated_engine.address(pod)}/metrics").text
        total += sum(
            map(float, re.findall(r'^enginehouse_requests_total\{[^}]*finish_reason="length"[^}]*\} (\S+)$', text, re.MULTILINE))
        )
    return total


def excused(outcome: Outcome, kills: list[Kill]) -> bool:
    """Its connection ended with the process at its other end. Nothing excuses a request that hangs."""
    if "Timeout" in outcome.words:
        return False
    ends = [kill.at for kill in kills if kill.role in LIVES_IN_CONNECTIONS]
    return any(outcome.began <= at + RESET_SECONDS and at <= outcome.ended for at in ends)


def test_every_request_ends_and_every_death_is_told_whatever_is_killed(space: Any, soak_seconds: float) -> None:
    if not space.installation.cluster.owned:
        pytest.skip("KUBECONFIG names the cluster: its processes are not ours to kill")
    seed = random.randrange(1 << 32)
    draw = random.Random(seed)
    print(f"seed {seed}")
    space.apply(
        simulated_engine.manifest(
            replicas=2,
            apiServers=2,
            parallelism=SHAPE,
            restart={"maxRestarts": 100, "windowSeconds": 60},
            drain={"timeoutSeconds": 5},
        )
    )
    space.wait("Ready", name="sim")
    world, kills, outcomes = World(space), list[Kill](), list[Outcome]()
    with space.installation.reached("sim", namespace=space.namespace) as url, Load(url) as load:
        until = time.monotonic() + soak_seconds
        while time.monotonic() < until:
            world.look()
            outcomes += load.taken()
            whole = world.whole()
            # Mostly one at a time, so that there is somebody to ask.
            if draw.random() < (0, 0.1, 0.7)[len(whole)]:
                kills.append(world.kill_one(draw.choice(whole), draw=draw))
                print(f"{kills[-1]}")
            load.wait(draw.uniform(0, 2))
        space.eventually("both replicas are whole", lambda: world.look() or len(world.whole()) == 2, seconds=400)
        load.stop()
        outcomes += load.taken()

        leaders = list(simulated_engine.pods(space).values())
        before = answered(leaders)
    with space.installation.reached("sim", namespace=space.namespace) as url, Load(url) as calm:
        calm.wait(CALM_SECONDS)
        calm.stop()
        after = calm.taken()
    print(dict(Counter(kill.role for kill in kills)), dict(Counter(str(outcome.kind) for outcome in outcomes)))
    print(Counter(outcome.words[:90] for outcome in outcomes).most_common(12), f"{len(world.ended)} replicas ended")

    unexcused = [str(outcome) for outcome in outcomes if outcome.kind is Kind.LOST and not excused(outcome, kills)]
    assert not unexcused, unexcused[:8]
    assert any(outcome.kind is Kind.ANSWERED for outcome in outcomes)
    assert {outcome.kind for outcome in after} == {Kind.ANSWERED}
    assert answered(leaders) - before == len(after)
    assert not any(world.shared_memory().values()), world.shared_memory()
    world.look()
    untold = [kill for kill in kills if kill.role != "monitor" and (kill.member, kill.role, kill.pid) not in world.failures]
    assert not untold, (untold, sorted(world.failures, key=str))
    assert world.ended <= {kill.replica for kill in kills}, "a replica ended in which nobody had died"
    space.kubectl("delete", "ie/sim", "--timeout=60s")
    space.eventually("no pod is left", lambda: not space.items("pods"), seconds=90)
    assert not world.left_behind()
