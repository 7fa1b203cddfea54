"""Deaths of actors in a replica of two pods whose processes Ray has started: ours beside Ray's own and the kubelet's.

The one job: start an engine of one rank, with the core and worker 0 in the leader's pod and worker 1 in the other's, touch the
cache, have streams under way, kill -9 one of the three in turn, and note when everybody knew. A rank in two pods does not restart
in place, so a life is a kill. Invariant: who is killed is read in the launchers' logs: Ray changes command lines.
Does not judge (``death.py``).
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import engine_deaths
import pod_processes
import replica_rows
import yaml
from kubernetes_watch import Watches, condition
from member_deaths import TOLD, first_line
from open_streams import ends_of

from localkube.installation import Installation

NAMESPACE = "bench"
START_SECONDS = 300.0
WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class Actor:
    """``name`` is the launcher's, ``in_ray`` the end of Ray's, ``pod`` the role of the one that it is in."""

    name: str
    in_ray: str
    pod: str


ACTORS = (
    Actor("engine core of rank 0", "core", "leader"),
    Actor("worker 0 of rank 0", "tp0-pp0", "leader"),
    Actor("worker 1 of rank 0 in member 1", "tp1-pp0", "worker"),
)


def engine(name: str) -> dict[str, Any]:
    """As that of one pod (``engine_deaths``), split over two: a worker has half of the model and of the cache."""
    manifest = engine_deaths.engine(name)
    manifest["spec"] |= {
        "executor": "Ray",
        "parallelism": {"tensor": 2, "workersPerMember": 1},
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "3Gi"}},
    }
    return manifest


def measure(installation: Installation, watches: Watches, rows: list[dict[str, Any]], *, kills: int) -> None:
    """Append one row for each kill."""
    for life in range(kills):
        began = time.time()
        victim = ACTORS[life % len(ACTORS)]
        rows.append(_life(installation, watches, name=f"ray-{life}", victim=victim))
        print(f"ray deaths: life {life + 1} of {kills}, {victim.name}, took {time.time() - began:.1f} s", flush=True)


def _life(installation: Installation, watches: Watches, *, name: str, victim: Actor) -> dict[str, Any]:
    began = time.time()
    watches.forget()
    installation.kubectl("apply", "-f", "-", namespace=NAMESPACE, stdin=yaml.safe_dump(engine(name)))
    try:
        ready = watches.engines.first(
            f"{name} Ready", lambda seen: condition(seen.found, "Ready") == "True", since=began, seconds=START_SECONDS
        )
        row = _death(installation, watches, victim)
    finally:
        installation.kubectl("delete", "ie", name, "--wait=false", namespace=NAMESPACE)
    watches.pods.until(f"the pods of {name} are gone", lambda pods: not pods, seconds=WAIT_SECONDS)
    watches.replicas.until(f"the replica of {name} is gone", lambda replicas: not replicas, seconds=WAIT_SECONDS)
    return {"ready_seconds": round(ready.at - began, 3), **row}


def _death(installation: Installation, watches: Watches, victim: Actor) -> dict[str, Any]:
    pods = {pod["metadata"]["labels"]["enginehouse.dev/role"]: pod for pod in watches.pods.latest().values()}
    own = pods[victim.pod]["metadata"]["name"]
    (elsewhere,) = (role for role in pods if role != victim.pod)
    with ExitStack() as stack:

        def log(role: str, container: str) -> pod_processes.Log:
            return stack.enter_context(closing(pod_processes.Log(installation.cluster, pods[role], container)))

        logs = {role: log(role, "engine") for role in pods}
        other_monitor = log(elsewhere, "monitor")
        pids = _pids(pods, logs)
        streams = engine_deaths.put_to_work(f"{pods['leader']['status']['podIP']}:8000")
        opened = stack.enter_context(pod_processes.pidfds(list(pids.values())))
        killed = pids.pop(victim)
        memory = pod_processes.private_bytes(killed)
        time.sleep(engine_deaths.QUIET_SECONDS)
        at = pod_processes.kill(opened[killed])
        gone = pod_processes.gone_at([opened[pid] for pid in pids.values()], seconds=WAIT_SECONDS)
        in_row = watches.replicas.first(
            "the death in the row",
            lambda seen: replica_rows.rank_is(seen.found, own, "Dead", incarnation=1),
            since=at,
            seconds=WAIT_SECONDS,
        )
        with_cause = watches.replicas.first(
            "its cause in the row",
            lambda seen: bool(replica_rows.failure(seen.found, own, incarnation=1)),
            since=at,
            seconds=WAIT_SECONDS,
        )
        failure = replica_rows.failure(with_cause.found, own, incarnation=1)
        noticed = replica_rows.noticed_at(failure)
        ends = ends_of(streams, seconds=WAIT_SECONDS)
        told = first_line(other_monitor, TOLD)
        kubelet = engine_deaths.kubelets_word(watches, since=at, pod=own)
        said = rf"the run of \S+-{victim.in_ray} has ended"
        in_ray = first_line(logs["leader"], said)
        unasked = logs["leader"].lines(said + r", its removal was not asked for")
    return {
        "victim": victim.name,
        "killed_at": at,
        **memory,
        "noticed_seconds": round(noticed - at, 6),
        "failure": {key: failure[key] for key in ("role", "index", "class", "detectedBy")},
        "row_seconds": round(in_row.at - at, 6),
        "cause_in_row_seconds": round(with_cause.at - at, 6),
        "other_monitor_told_seconds": None if told is None else round(told - at, 6),
        "survivors": len(pids),
        "survivors_gone_seconds": round(gone - at, 6),
        "stream_seconds": [round(end.at - at, 6) for end in ends],
        "stream_ends": [end.last for end in ends],
        "run_reference_seconds": None if in_ray is None else round(in_ray - at, 6),
        "run_reference_before_removal": bool(unasked),
        **kubelet,
    }


def _pids(pods: dict[str, dict[str, Any]], logs: dict[str, pod_processes.Log]) -> dict[Actor, int]:
    """Of the three actors, as this machine numbers them."""
    found = {}
    for actor in ACTORS:
        lines = logs[actor.pod].lines(rf"started {actor.name}, pid \d+$")
        if len(lines) != 1:
            raise RuntimeError(f"one line 'started {actor.name}' was wanted in the log of the {actor.pod}, found {lines}")
        inside = int(re.findall(r"\d+", lines[0])[-1])
        found[actor] = pod_processes.numbers_in_the_engine(pods[actor.pod]["metadata"]["uid"])[inside]
    return found
