"""make bench NAME=death: from kill -9 to everybody who has to know, on a real kubelet, beside the kubelet's own path.

The one job: kill processes of running engines, many times, say how long each step took, and hold that against the bars.
All moments are CLOCK_REALTIME of one machine: containers have no clock of their own, so the monitor's time stamps (microseconds),
those of logs (milliseconds) and this process's compare directly. p99 is the nearest rank: of fewer than 100 kills, the greatest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import engine_deaths
import member_deaths
import memory_curve
import plain_pods
import ray_deaths
import record
from kubernetes_watch import watching

from localkube import cluster
from localkube.installation import install

NAMESPACE = "bench"
KILLS = 50
CURVE_KILLS = 20
"""Of each size and kind of pages: no engine dies here."""
RAY_KILLS = 20
"""Each is the end of a replica of two pods, and such a replica takes long to start."""
CASES = ("curve", "engine", "members", "alone", "ray", "plain")
ROW_SECONDS = 0.1
"""Of a Ray replica, from the kill on, and more with each GB of private memory."""
NOTICE_SECONDS = 0.005
NOTICE_SECONDS_PER_GB = 0.005
GB = 1e9
COMPARED = {
    "noticed": "the kill and the time that the monitor noted in its row, right after its epoll returned",
    "pipe closed": "the kill and the end of file on the death pipe, opened anew by this process",
    "row in the API": "the monitor's notice and the arrival at a watch here of the row in which the rank does not serve; its cause"
    " follows when the process is reaped",
    "other monitor told": "that notice and the other pod's monitor's log line of having seen that row",
    "streams": "that notice and the arrival of each stream's error event in this process",
    "survivors gone": "the kill and the last pidfd of the rank's other processes in both pods",
    "Ray": "all from the kill on, not from the notice; Ray's own path: the log line of the actor manager, which waits for the"
    " actor's run reference; only if it was there before the removal of the rank was asked for it is Ray's alone",
    "endpoint withdrawn": "the kill of the only rank, the second in its replica, and the EndpointSlice without it at a watch",
    "serving again": "a core's first start, from the launcher's log of its spawn to the API server's log that its rank serves, and,"
    " in the same pod, the time from the kill to that log line of the next incarnation",
}


def p99(values: Iterable[float]) -> float:
    """The nearest rank."""
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def summary(values: Iterable[float]) -> dict[str, float]:
    found = list(values)
    if not found:
        return {"kills": 0}
    return {
        "kills": len(found),
        "p50": round(statistics.median(found), 6),
        "p99": round(p99(found), 6),
        "most": round(max(found), 6),
    }


def share_of_limit(row: dict[str, Any]) -> float:
    """Of the time that a kill may take to be noticed: some, and more with each GB of private memory."""
    limit = NOTICE_SECONDS + NOTICE_SECONDS_PER_GB * row["private_bytes"] / GB
    return float(row["noticed_seconds"] / limit)


def row_share_of_limit(row: dict[str, Any]) -> float:
    """Of the time that a kill of an actor may take to be in the API."""
    return float(row["row_seconds"] / (ROW_SECONDS + NOTICE_SECONDS_PER_GB * row["private_bytes"] / GB))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=KILLS, help="of each case")
    parser.add_argument("--curve-kills", type=int, default=CURVE_KILLS, help="of each size and kind of pages")
    parser.add_argument("--case", choices=CASES, action="append", help="one of them only")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running, for the next try")
    arguments = parser.parse_args()
    chosen = arguments.case or CASES
    about: dict[str, Any] = {"load_average_before": os.getloadavg()}
    rows: dict[str, list[dict[str, Any]]] = {case: [] for case in chosen}
    whole = False
    try:
        if "curve" in chosen:
            memory_curve.measure(rows["curve"], kills=min(arguments.curve_kills, arguments.kills))
        if set(chosen) - {"curve"}:
            on_a_cluster(rows, about, kills=arguments.kills, keep=arguments.keep)
        whole = True
    finally:
        # What was measured until something broke is of use, too.
        status = write(rows, about, kills=arguments.kills, whole=whole)
    return status


def on_a_cluster(rows: dict[str, list[dict[str, Any]]], about: dict[str, Any], *, kills: int, keep: bool) -> None:
    """The cases that need a kubelet on this machine."""
    running = cluster.from_environment_or_start("death")
    if not running.owned:
        raise SystemExit(
            "KUBECONFIG names a cluster of yours: this bench kills from the host, so it needs its own; unset KUBECONFIG"
        )
    try:
        about["kubernetes"] = json.loads(running.kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
        installation = install(running)
        with ExitStack() as stack:
            models = stack.enter_context(tempfile.TemporaryDirectory(prefix="enginehouse-model-"))
            running.kubectl("create", "namespace", NAMESPACE)
            stack.callback(running.kubectl, "delete", "namespace", NAMESPACE, timeout_seconds=120)
            watches = stack.enter_context(watching(running.kubeconfig, NAMESPACE))
            if {"engine", "ray"} & set(rows):
                subprocess.run([sys.executable, str(Path(__file__).with_name("random_model.py")), models], check=True)
                installation.kubectl("apply", "-f", "-", namespace=NAMESPACE, stdin=engine_deaths.volume(Path(models)))
                stack.callback(running.kubectl, "delete", "pv", engine_deaths.MODEL_NAME, "--wait=false")
            if "engine" in rows:
                engine_deaths.measure(installation, watches, rows["engine"], kills=kills)
            for case, operator in (("members", True), ("alone", False)):
                if case in rows:
                    member_deaths.measure(installation, watches, rows[case], kills=kills, operator=operator)
            if "ray" in rows:
                ray_deaths.measure(installation, watches, rows["ray"], kills=min(kills, RAY_KILLS))
            if "plain" in rows:
                plain_pods.measure(installation, watches, rows["plain"], kills=kills)
    finally:
        if not keep:
            running.stop()


def write(rows: dict[str, list[dict[str, Any]]], about: dict[str, Any], *, kills: int, whole: bool) -> int:
    engine = rows.get("engine", [])
    ray = rows.get("ray", [])
    in_place = [row for row in engine if "serving_again_seconds" in row]
    ends = [row for row in engine if "endpoint_withdrawn_seconds" in row]
    members = {case: rows.get(case, []) for case in ("members", "alone")}

    def of(found: list[dict[str, Any]], key: str) -> list[float]:
        return [row[key] for row in found if row.get(key) is not None]

    told = "other_monitor_told_seconds_after_notice"
    summaries = {
        "engine core: private GB": summary(row["private_bytes"] / GB for row in engine),
        "engine core: noticed by the monitor": summary(of(engine, "noticed_seconds")),
        "engine core: the death pipe closed": summary(of(engine, "pipe_closed_seconds")),
        "engine core: the process is gone": summary(of(engine, "process_gone_seconds")),
        "engine core: row in the API, after notice": summary(of(engine, "row_seconds_after_notice")),
        "engine core: cause in the row, after notice": summary(of(engine, "cause_in_row_seconds_after_notice")),
        "engine core: streams ended, after notice": summary(_streams(engine)),
        "in place: cold start": summary(of(in_place, "cold_start_seconds")),
        "in place: serving again": summary(of(in_place, "serving_again_seconds")),
        "in place: first answer": summary(of(in_place, "first_answer_seconds")),
        "in place: the kubelet's word, pod not Ready": summary(of(in_place, "pod_not_ready_seconds")),
        "no rank left: endpoint withdrawn": summary(of(ends, "endpoint_withdrawn_seconds")),
        "no rank left: the kubelet's word, pod not Ready": summary(of(ends, "pod_not_ready_seconds")),
        "no rank left: the kubelet's word, container terminated": summary(of(ends, "container_terminated_seconds")),
        "plain pod, main process killed: the kubelet's word": summary(of(rows.get("plain", []), "container_terminated_seconds")),
    }
    for case, found in members.items():
        operator = "with the operator" if case == "members" else "without operator"
        summaries |= {
            f"two pods, {operator}: row in the API, after notice": summary(of(found, "row_seconds_after_notice")),
            f"two pods, {operator}: the other monitor told, after notice": summary(of(found, told)),
            f"two pods, {operator}: survivors gone": summary(of(found, "survivors_gone_seconds")),
        }
    summaries |= {
        "Ray: private GB": summary(row["private_bytes"] / GB for row in ray),
        "Ray: noticed by the monitor": summary(of(ray, "noticed_seconds")),
        "Ray: row in the API": summary(of(ray, "row_seconds")),
        "Ray: cause in the row": summary(of(ray, "cause_in_row_seconds")),
        "Ray: the other monitor told": summary(of(ray, "other_monitor_told_seconds")),
        "Ray: streams ended": summary(max(row["stream_seconds"]) for row in ray),
        "Ray: survivors gone": summary(of(ray, "survivors_gone_seconds")),
        "Ray: Ray's own path, the run reference ended": summary(of(ray, "run_reference_seconds")),
        "Ray: of those, before removal was asked for": summary(
            of([row for row in ray if row["run_reference_before_removal"]], "run_reference_seconds")
        ),
        "Ray: the kubelet's word, pod not Ready": summary(of(ray, "pod_not_ready_seconds")),
        "Ray: the kubelet's word, container terminated": summary(of(ray, "container_terminated_seconds")),
    }
    summaries = {what: found for what, found in summaries.items() if found["kills"]}
    figures = {
        **about,
        "load_average_after": os.getloadavg(),
        "executor": "InProcess (model and KV cache in the core); two pods: Simulated; Ray: two workers in two pods",
        "what_is_compared": COMPARED,
        "whole": whole,
        "seconds": summaries,
        "memory_curve": curve(rows.get("curve", [])),
        "stream_ends": sorted({end for row in [*engine, *ray] for end in row["stream_ends"]}),
        "rows": rows,
    }
    for what, found in summaries.items():
        print(f"{found['p50']:9.4f} {found['p99']:9.4f}  {what} ({found['kills']})")
    for point in curve(rows.get("curve", [])):
        noticed, closed = (point[key] for key in ("noticed_seconds", "pipe_closed_seconds"))
        print(
            f"{noticed['p50']:9.4f} {noticed['p99']:9.4f}  noticed, {point['private_gb']:.1f} GB on {point['pages']} pages", end=""
        )
        print(f"; its pipe closed {closed['p50']:.4f} {closed['p99']:.4f}")
    bars = [bar for bar in _bars(rows.get("curve", []), engine, in_place, ends, members, ray, of, told) if bar is not None]
    status = record.write("death", figures=figures, bars=bars, repeats=kills, packages=("torch", "kubernetes"))
    return status if whole else 1


def _streams(engine: list[dict[str, Any]]) -> list[float]:
    """Of each death, the last stream to end."""
    return [max(row["stream_seconds_after_notice"]) for row in engine]


def _bars(
    curve: list[dict[str, Any]],
    engine: list[dict[str, Any]],
    in_place: list[dict[str, Any]],
    ends: list[dict[str, Any]],
    members: dict[str, list[dict[str, Any]]],
    ray: list[dict[str, Any]],
    of: Callable[[list[dict[str, Any]], str], list[float]],
    told: str,
) -> list[record.Bar | None]:
    """None for what was not measured."""

    def most(bar: str, values: list[float], limit: float, unit: str = "s") -> record.Bar | None:
        return record.at_most(bar, p99(values), limit=limit, unit=unit) if values else None

    row = "row_seconds_after_notice"
    unfair = [end for found in [*engine, *ray] for end in found["stream_ends"] if end != "engine_core_lost"]
    return [
        most("noticed by the monitor, p99 of 5 ms + 5 ms per GB", [share_of_limit(found) for found in engine], 1.0, "x"),
        most("curve: noticed by the monitor, p99 of 5 ms + 5 ms per GB", [share_of_limit(found) for found in curve], 1.0, "x"),
        most("row in the API after notice, p99", of(engine, row), 0.05),
        *(
            bar
            for case, found in members.items()
            for bar in (
                most(f"{case}: row in the API after notice, p99", of(found, row), 0.05),
                most(f"{case}: other monitor told after notice, p99", of(found, told), 0.05),
                record.at_most(f"{case}: other monitor never told", len(found) - len(of(found, told)), limit=0, unit="kills")
                if found
                else None,
                most(f"{case}: survivors of the rank gone in two pods, p99", of(found, "survivors_gone_seconds"), 1.0),
            )
        ),
        most("streams ended after notice, p99", _streams(engine), 0.1),
        record.at_most("streams that ended without the error to try again", len(unfair), limit=0, unit="streams")
        if engine or ray
        else None,
        most("endpoint withdrawn when no rank is left, p99", of(ends, "endpoint_withdrawn_seconds"), 0.5),
        most(
            "serving again over its own cold start, p99",
            [found["serving_again_seconds"] / found["cold_start_seconds"] for found in in_place],
            1.5,
            "x",
        ),
        most("Ray: row in the API, p99 of 100 ms + 5 ms per GB", [row_share_of_limit(found) for found in ray], 1.0, "x"),
        most("Ray: survivors of the rank gone in two pods, p99", of(ray, "survivors_gone_seconds"), 1.0),
    ]


def curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One point for each size and kind of pages."""
    points = sorted({(row["pages"], row["size_bytes"]) for row in rows})
    found = []
    for pages, size in points:
        chosen = [row for row in rows if (row["pages"], row["size_bytes"]) == (pages, size)]
        found.append(
            {
                "pages": "4 KiB" if pages == "small" else "huge (madvise)",
                "private_gb": round(statistics.median(row["private_bytes"] for row in chosen) / GB, 2),
                "noticed_seconds": summary(row["noticed_seconds"] for row in chosen),
                "pipe_closed_seconds": summary(row["pipe_closed_seconds"] for row in chosen),
                "process_gone_seconds": summary(row["process_gone_seconds"] for row in chosen),
                "of_limit_p99": round(p99(share_of_limit(row) for row in chosen), 3),
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
