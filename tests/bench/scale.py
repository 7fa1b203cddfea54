"""make bench NAME=scale: many engines of one replica with two members, beside as many of two peers' groups and as many bare pods.

The one job: for each contender and number, make all groups at once on a control plane of its own with fake nodes, and note when
each group was reported ready, what its operator asked of the API server, and what it cost. No kubelet runs: members' rows are
written by scripted monitors, pods are made ready by KWOK. The limits that Kubernetes' own parts have on their requests are those
they come with: without them nobody would see what a controller costs that goes through another.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import record
import scale_contenders
from audited_requests import Asked, AuditLog
from first_times import FirstTimes, Found, is_ready
from kubernetes_requests import Requests
from scale_contenders import NAMESPACE, Contender, Operator
from scripted_monitors import ScriptedMonitors

from localkube import cluster
from localkube.cluster import Cluster

COUNTS = (200, 1000)
CLIENTS = 20
FAKE_NODES = 10
READY_SECONDS = 900.0
SETTLED_SECONDS = 15.0
QUIET_SECONDS = 60.0
POLL_SECONDS = 0.2
PARTS = ("kube-apiserver", "kube-controller", "kube-scheduler", "etcd", "kwok")

READY_LIMIT = 1.5
WRITES_LIMIT = 12.0
FIRST_READY_LIMIT_SECONDS = 5.0
RESIDENT_LIMIT_MIB = 200.0
CPU_LIMIT_MILLISECONDS = 30.0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    options.add_argument("--only", nargs="+", default=["pods", "enginehouse", "kuberay", "lws"])
    chosen = options.parse_args()
    makers = (
        scale_contenders.bare_pods, scale_contenders.engines, scale_contenders.ray_clusters, scale_contenders.leader_worker_sets,
    )  # fmt: skip
    figures: dict[str, dict[str, Any]] = {}
    for count in chosen.counts:
        for contender in (make() for make in makers):
            if contender.name in chosen.only:
                found = one_run(contender, count=count)
                figures.setdefault(contender.name, {})[str(count)] = found
                print(f"{contender.name}, {count}: {found}", flush=True)
    return record.write("scale", figures=figures, bars=bars(figures), repeats=1, packages=("kopf", "kubernetes", "aiohttp"))


def bars(figures: dict[str, dict[str, Any]]) -> list[record.Bar]:
    found = []
    for count, own in figures.get("enginehouse", {}).items():
        if "pods" in figures:
            ready = own["all_ready_seconds"] / figures["pods"][count]["all_ready_seconds"]
            found.append(record.at_most(f"{count} engines Ready, in times of bare pods", ready, limit=READY_LIMIT, unit="x"))
        found += [
            record.at_most(f"writes per engine, of {count}", own["writes_per_group"], limit=WRITES_LIMIT, unit="writes"),
            record.at_most(f"writes in a quiet minute, {count} engines", own["quiet"]["writes"], limit=0, unit="writes"),
        ]
    last = figures.get("enginehouse", {}).get("1000")
    if last is not None:
        used = last["operator"]
        found += [
            record.at_most("first of 1000 Ready", last["ready"]["first"], limit=FIRST_READY_LIMIT_SECONDS, unit="s"),
            record.at_most("operator's memory, 1000 engines", used["peak_mib"], limit=RESIDENT_LIMIT_MIB, unit="MiB"),
            record.at_most("operator's CPU per engine", used["cpu_ms_per_group"], limit=CPU_LIMIT_MILLISECONDS, unit="ms"),
        ]
    return found


def one_run(contender: Contender, *, count: int) -> dict[str, Any]:
    """Everything of it is thrown away afterwards."""
    name = f"scale{os.getpid()}"
    running = cluster.start(name, control_plane_only=True, fake_nodes=FAKE_NODES, stock_limits=True)
    operator: Operator | None = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            running.kubectl("create", "namespace", NAMESPACE)
            operator = contender.start(running, Path(folder))
            return _measured(running, contender, operator, count=count)
    finally:
        if operator is not None:
            _end(operator.process)
        running.stop()


def _measured(running: Cluster, contender: Contender, operator: Operator | None, *, count: int) -> dict[str, Any]:
    monitors = ScriptedMonitors(running.kubeconfig)
    pods = FirstTimes(
        running.kubeconfig, f"/api/v1/namespaces/{NAMESPACE}/pods", {"made": _always, "ready": is_ready}, listener=monitors.hear
    )
    groups = FirstTimes(running.kubeconfig, contender.path, {"ready": contender.is_ready})
    with monitors, pods, groups:
        return _timed(running, contender, operator, monitors, pods, groups, count=count)


def _timed(
    running: Cluster,
    contender: Contender,
    operator: Operator | None,
    monitors: ScriptedMonitors,
    pods: FirstTimes,
    groups: FirstTimes,
    *,
    count: int,
) -> dict[str, Any]:
    assert running.audit_log is not None
    log = AuditLog(running.audit_log, user=operator.user) if operator is not None else None
    idle = _usage(operator.process.pid) if operator is not None else {}
    parts = _parts(running)
    began = time.monotonic()
    _make(running, contender, count=count)
    made = time.monotonic() - began
    wanted = _manifests(contender, count)
    _until(
        f"{contender.name}: all ready",
        lambda: len(groups.times("ready")) == wanted and len(pods.times("ready")) == 2 * count,
        told=lambda: f"{len(groups.times('ready'))} of {wanted} groups, {len(pods.times('ready'))} of {2 * count} pods",
        errors=monitors.errors,
    )
    ready = groups.times("ready")
    found: dict[str, Any] = {
        "all_ready_seconds": round(time.monotonic() - began, 2),
        "made_seconds": round(made, 2),
        "ready": _spread(ready, began),
        "pods_made": _spread(pods.times("made"), began),
        "pods_ready": _spread(pods.times("ready"), began),
        "parts_cpu_seconds": {name: round(used - parts[name], 1) for name, used in _parts(running).items()},
    }
    if operator is not None and log is not None:
        found |= _cost(operator, log, idle, count=count)
    return found


def _cost(operator: Operator, log: AuditLog, idle: dict[str, float], *, count: int) -> dict[str, Any]:
    """What the operator asked until it had nothing more to do, and in a quiet minute afterwards."""
    asked, more, deadline = log.asked(), None, time.monotonic() + READY_SECONDS
    while more is None or more.writes(events=False):
        if time.monotonic() > deadline:
            raise SystemExit(f"the operator has not settled in {READY_SECONDS:.0f} s: {more and more.requests}")
        more = _after(SETTLED_SECONDS, log)
        asked.requests.update(more.requests)
        asked.refused.update(more.refused)
    used = _usage(operator.process.pid)
    quiet = _after(QUIET_SECONDS, log)
    end = _usage(operator.process.pid)
    cpu = used["cpu_seconds"] - idle["cpu_seconds"]
    return {
        "writes_per_group": round(asked.writes(events=False) / count, 3),
        "events_per_group": round(asked.writes(events=True) / count, 3),
        "requests": dict(asked.requests.most_common()),
        "refused": dict(asked.refused),
        "quiet": {
            "writes": quiet.writes(events=False) + quiet.writes(events=True),
            "requests": dict(quiet.requests),
            "cpu_seconds": round(end["cpu_seconds"] - used["cpu_seconds"], 2),
        },
        "operator": {
            "cpu_seconds": round(cpu, 2),
            "cpu_ms_per_group": round(1000 * cpu / count, 2),
            "idle_mib": round(idle["mib"], 1),
            "peak_mib": round(end["peak_mib"], 1),
        },
    }


def _after(seconds: float, log: AuditLog) -> Asked:
    time.sleep(seconds)
    return log.asked()


def _make(running: Cluster, contender: Contender, *, count: int) -> None:
    requests = Requests(running.kubeconfig)
    names = [f"g{number}" for number in range(_manifests(contender, count))]
    with ThreadPoolExecutor(CLIENTS) as clients:
        for _ in clients.map(lambda name: requests.send("POST", contender.path, contender.manifest(name)), names):
            pass


def _manifests(contender: Contender, count: int) -> int:
    return 2 * count if contender.makes_pods_itself else count


def _until(what: str, holds: Any, *, told: Any, errors: list[str]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not holds():
        if errors:
            raise SystemExit(f"{what}: {len(errors)} rows were refused, the first: {errors[0]}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {READY_SECONDS:.0f} s: {told()}")
        time.sleep(POLL_SECONDS)


def _spread(times: dict[str, float], began: float) -> dict[str, float]:
    seconds = sorted(at - began for at in times.values())
    return {"first": round(seconds[0], 2), "median": round(statistics.median(seconds), 2), "last": round(seconds[-1], 2)}


def _usage(pid: int) -> dict[str, float]:
    """CPU seconds so far, resident memory now and at its highest."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {
        "cpu_seconds": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        "mib": int(lines["VmRSS"].split()[0]) / 1024,
        "peak_mib": int(lines["VmHWM"].split()[0]) / 1024,
    }


def _parts(running: Cluster) -> dict[str, float]:
    """CPU seconds of the control plane's processes and of this one."""
    found = {name: _usage(pid)["cpu_seconds"] for pid, name in running.processes().items() if name in PARTS}
    return {**found, "client": _usage(os.getpid())["cpu_seconds"]}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _always(_: Found) -> bool:
    return True


if __name__ == "__main__":
    sys.exit(main())
