"""Deaths in replicas of two pods (executor Simulated): when the other pod's monitor was told, when the survivors were gone.

The one job: engines of one rank, with a worker in each pod and the core in the leader's, all made before the first kill; in every
other one the worker of the second pod dies, else the core. With the operator, or with none. Does not judge (``death.py``).
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import Any

import pod_processes
import replica_rows
import yaml
from kubernetes_watch import Watches, condition
from pod_processes import ENGINE_CORE, WORKER

from localkube.installation import SYSTEM_NAMESPACE, Installation

NAMESPACE = "bench"
BATCH = 4
"""Engines at a time: eight pods whose requests fill a machine of two CPUs, as those of engines do."""
START_SECONDS = 240.0
WAIT_SECONDS = 60.0
PAUSE_SECONDS = 1.0
"""Between a kill and what came before it, which has come to rest: taking down a pod keeps a kernel of two CPUs busy."""
TOLD = r"monitor: rank \d+ is dead in "
"""What a monitor logs when it sees that a rank died in another member."""
ORDERED = r"RankDiedElsewhere: told the launcher"
"""What it logs when it has its launcher end the rank; not if the launchers' own connection was faster, and nothing of it lives."""


def engine(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "metadata": {"name": name},
        "spec": {
            "executor": "Simulated",
            "parallelism": {"tensor": 2, "workersPerMember": 1},
            "context": {"maxLength": 512},
            "resources": {"requests": {"cpu": "150m"}, "limits": {"memory": "1Gi"}},
            "drain": {"timeoutSeconds": 1},
            "restart": {"maxRestarts": 0},
        },
    }


def measure(installation: Installation, watches: Watches, rows: list[dict[str, Any]], *, kills: int, operator: bool) -> None:
    """Append one row for each kill."""
    done = 0
    while done < kills:
        count = min(BATCH, kills - done)
        began = time.time()
        names = [f"{'led' if operator else 'alone'}-{done + number}" for number in range(count)]
        _batch(installation, watches, rows, names, operator=operator)
        done += count
        with_operator = "with" if operator else "without"
        print(f"member deaths {with_operator} operator: {done} of {kills} kills, {time.time() - began:.1f} s", flush=True)


def _batch(installation: Installation, watches: Watches, rows: list[dict[str, Any]], names: list[str], *, operator: bool) -> None:
    watches.forget()
    manifests = yaml.safe_dump_all([engine(name) for name in names])
    installation.kubectl("apply", "-f", "-", namespace=NAMESPACE, stdin=manifests)
    watches.engines.until(
        "all engines of two pods are Ready",
        lambda engines: all(condition(engines.get(name, {}), "Ready") == "True" for name in names),
        seconds=START_SECONDS,
    )
    if not operator:
        _scale_operator(installation, 0)
    try:
        for number, name in enumerate(names):
            time.sleep(PAUSE_SECONDS)
            rows.append({"operator": operator, **_one_kill(installation, watches, name, victim=(WORKER, ENGINE_CORE)[number % 2])})
            watches.pods.until(f"nothing runs of {name}", lambda pods, name=name: not _runs(name, pods), seconds=WAIT_SECONDS)
    finally:
        if not operator:
            _scale_operator(installation, 1)
    installation.kubectl("delete", "ie", *names, "--wait=false", namespace=NAMESPACE)
    watches.pods.until("the pods of two-pod engines are gone", lambda pods: not pods, seconds=START_SECONDS)
    watches.replicas.until("the replicas of two pods are gone", lambda replicas: not replicas, seconds=WAIT_SECONDS)


def _runs(name: str, pods: dict[str, dict[str, Any]]) -> bool:
    """Whether anything of an engine does; without an operator its pods stay when they have ended."""
    return any(
        pod["metadata"]["labels"]["enginehouse.dev/engine"] == name and pod["status"]["phase"] not in ("Failed", "Succeeded")
        for pod in pods.values()
    )


def _one_kill(installation: Installation, watches: Watches, name: str, *, victim: str) -> dict[str, Any]:
    labels = {pod["metadata"]["name"]: pod["metadata"]["labels"] for pod in watches.pods.latest().values()}
    pods = {
        labels[pod]["enginehouse.dev/role"]: watches.pods.latest()[pod]
        for pod in labels
        if labels[pod]["enginehouse.dev/engine"] == name
    }
    where, elsewhere = ("worker", "leader") if victim == WORKER else ("leader", "worker")
    rank = {
        role: [found.pid for found in pod_processes.of_pod(pods[role]["metadata"]["uid"]) if found.module in (ENGINE_CORE, WORKER)]
        for role in pods
    }
    pid = pod_processes.only(pods[where]["metadata"]["uid"], victim)
    survivors = [survivor for pids in rank.values() for survivor in pids if survivor != pid]
    with ExitStack() as stack:
        monitor = stack.enter_context(closing(pod_processes.Log(installation.cluster, pods[elsewhere], "monitor")))
        opened = stack.enter_context(pod_processes.pidfds([pid, *survivors]))
        at = pod_processes.kill(opened[pid])
        gone = pod_processes.gone_at([opened[survivor] for survivor in survivors], seconds=WAIT_SECONDS)
        own = pods[where]["metadata"]["name"]
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
        noticed = replica_rows.noticed_at(replica_rows.failure(with_cause.found, own, incarnation=1))
        told = first_line(monitor, TOLD)
        ordered = next(iter(monitor.moments(ORDERED)), None)
    return {
        "victim": victim.rpartition(".")[2],
        "survivors": len(survivors),
        "noticed_seconds": round(noticed - at, 6),
        "row_seconds_after_notice": round(in_row.at - noticed, 6),
        "other_monitor_told_seconds_after_notice": None if told is None else round(told - noticed, 6),
        "other_monitor_ordered_seconds_after_notice": None if ordered is None else round(ordered - noticed, 6),
        "survivors_gone_seconds": round(gone - at, 6),
    }


def first_line(log: pod_processes.Log, pattern: str) -> float | None:
    """The first moment of such a line; waits for it, since the other pod acts on its own."""
    deadline = time.time() + 2.0
    while not (moments := log.moments(pattern)):
        if time.time() > deadline:
            return None
        time.sleep(0.05)
    return moments[0]


def _scale_operator(installation: Installation, replicas: int) -> None:
    """And wait until it is so."""
    label = "app.kubernetes.io/name=enginehouse"
    cluster = installation.cluster
    cluster.kubectl("--namespace", SYSTEM_NAMESPACE, "scale", "deployment", f"--selector={label}", f"--replicas={replicas}")
    if replicas:
        cluster.kubectl(
            "--namespace", SYSTEM_NAMESPACE, "rollout", "status", "deployment", f"--selector={label}", timeout_seconds=120
        )
        return
    cluster.kubectl(
        "--namespace", SYSTEM_NAMESPACE, "wait", "--for=delete", "pods", f"--selector={label}", "--timeout=60s", timeout_seconds=70
    )
