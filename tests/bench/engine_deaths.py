"""Deaths of a real engine core in its pod: two in each life of a replica, the first answered in place, the second by its end.

The one job: start an engine of one rank whose core holds model and KV cache itself (executor InProcess), touch the cache, have
streams under way, kill -9, and note when monitor, API, clients, endpoints and the kubelet knew. Does not judge (``death.py``).
"""

from __future__ import annotations

import json
import os
import random
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pod_processes
import replica_rows
import yaml
from kubernetes_watch import NotSeen, Watches, condition
from open_streams import OpenStream, ends_of, open_streams
from pod_processes import ENGINE_CORE
from random_model import CONTEXT_TOKENS

from localkube.installation import Installation

NAMESPACE = "bench"
MODEL_NAME = "random"
STREAMS = 6
TOUCHED_PROMPTS = 32
TOUCHED_TOKENS = 384
"""Of each such prompt: together they fill so many blocks of the cache, and no two share one."""
START_SECONDS = 240.0
WAIT_SECONDS = 120.0
QUIET_SECONDS = 0.5
"""Between what a life does before a kill and the kill."""


def volume(folder: Path) -> str:
    """The claim that the engine names, bound to that folder of this machine."""
    text = (Path(__file__).parents[2] / "examples" / "smollm2-volume.yaml").read_text()
    manifests = list(yaml.safe_load_all(text.replace("smollm2", MODEL_NAME)))
    manifests[0]["spec"]["hostPath"]["path"] = str(folder)
    return yaml.safe_dump_all(manifests)


def engine(name: str) -> dict[str, Any]:
    """No successor comes after the second death, so that nothing else starts while it is looked at."""
    return {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": f"pvc://{MODEL_NAME}/", "servedName": MODEL_NAME},
            "executor": "InProcess",
            "context": {"maxLength": CONTEXT_TOKENS},
            "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "2560Mi"}},
            "drain": {"timeoutSeconds": 1},
            "restart": {"maxRestarts": 0},
        },
    }


def measure(installation: Installation, watches: Watches, rows: list[dict[str, Any]], *, kills: int) -> None:
    """Append one row for each kill: so many in place, and so many at the end of a replica."""
    for life in range(kills):
        began = time.time()
        _life(installation, watches, rows, name=f"death-{life}")
        print(f"engine deaths: life {life + 1} of {kills} took {time.time() - began:.1f} s", flush=True)


def _life(installation: Installation, watches: Watches, rows: list[dict[str, Any]], *, name: str) -> None:
    began = time.time()
    watches.forget()
    installation.kubectl("apply", "-f", "-", namespace=NAMESPACE, stdin=yaml.safe_dump(engine(name)))
    try:
        watches.engines.first(
            f"{name} Ready", lambda seen: condition(seen.found, "Ready") == "True", since=began, seconds=START_SECONDS
        )
        watches.slices.first(
            "an endpoint", lambda seen: bool(_ready_endpoints(name, seen.found)), since=began, seconds=WAIT_SECONDS
        )
        (pod,) = watches.pods.latest().values()
        with closing(pod_processes.Log(installation.cluster, pod, "engine")) as log:
            row = _death(watches, pod, log, incarnation=1)
            rows.append(row | _in_place(watches, name, pod, log, row))
            row = _death(watches, pod, log, incarnation=2)
            rows.append(row | _end(watches, name, row))
    finally:
        installation.kubectl("delete", "ie", name, "--wait=false", namespace=NAMESPACE)
    watches.pods.until(f"the pod of {name} is gone", lambda pods: not pods, seconds=WAIT_SECONDS)
    watches.replicas.until(f"the replica of {name} is gone", lambda replicas: not replicas, seconds=WAIT_SECONDS)


def _death(watches: Watches, pod: dict[str, Any], log: pod_processes.Log, *, incarnation: int) -> dict[str, Any]:
    """Touch the cache, have streams under way, kill -9; what is the same for both deaths."""
    core = pod_processes.only(pod["metadata"]["uid"], ENGINE_CORE)
    streams = put_to_work(f"{pod['status']['podIP']}:8000")
    with pod_processes.pidfds([core]) as opened:
        memory = pod_processes.private_bytes(core)
        time.sleep(QUIET_SECONDS)
        pipe = pod_processes.death_pipe(core)
        at = pod_processes.kill(opened[core])
        pipe_closed = pod_processes.hung_up_at(pipe, seconds=WAIT_SECONDS)
        os.close(pipe)
        gone = pod_processes.gone_at([opened[core]], seconds=WAIT_SECONDS)
    own = pod["metadata"]["name"]
    in_row = watches.replicas.first(
        "the death in the row",
        lambda seen: replica_rows.rank_is(seen.found, own, "Restarting", "Dead", incarnation=incarnation),
        since=at,
        seconds=WAIT_SECONDS,
    )
    with_cause = watches.replicas.first(
        "its cause in the row",
        lambda seen: bool(replica_rows.failure(seen.found, own, incarnation=incarnation)),
        since=at,
        seconds=WAIT_SECONDS,
    )
    failure = replica_rows.failure(with_cause.found, own, incarnation=incarnation)
    noticed = replica_rows.noticed_at(failure)
    ends = ends_of(streams, seconds=WAIT_SECONDS)
    return {
        "incarnation": incarnation,
        "killed_at": at,
        **memory,
        "noticed_seconds": round(noticed - at, 6),
        "detected_by": failure["detectedBy"],
        "pipe_closed_seconds": round(pipe_closed - at, 6),
        "process_gone_seconds": round(gone - at, 6),
        "row_seconds_after_notice": round(in_row.at - noticed, 6),
        "cause_in_row_seconds_after_notice": round(with_cause.at - noticed, 6),
        "stream_seconds_after_notice": [round(end.at - noticed, 6) for end in ends],
        "stream_ends": [end.last for end in ends],
    }


def _in_place(watches: Watches, name: str, pod: dict[str, Any], log: pod_processes.Log, row: dict[str, Any]) -> dict[str, Any]:
    """Until the rank serves again; beside it, its own cold start, and what the Pod object showed meanwhile."""
    at = row["killed_at"]
    own = pod["metadata"]["name"]
    in_row = watches.replicas.first(
        "serving again",
        lambda seen: replica_rows.rank_is(seen.found, own, "Serving", incarnation=2),
        since=at,
        seconds=START_SECONDS,
    )
    complete(f"{pod['status']['podIP']}:8000", _prompt(16))
    answered = time.time()
    started = log.moments(r"started engine core of rank 0, pid")
    served = log.moments(r"rank 0 serves, context length")
    not_ready = watches.pods.seen(lambda seen: condition(seen.found, "Ready") == "False", since=at)
    watches.engines.first(
        "Ready again", lambda seen: condition(seen.found, "Ready") == "True", since=in_row.at, seconds=WAIT_SECONDS
    )
    watches.slices.until(
        "an endpoint again", lambda slices: any(_ready_endpoints(name, found) for found in slices.values()), seconds=WAIT_SECONDS
    )
    return {
        "cold_start_seconds": round(served[0] - started[0], 3),
        "serving_again_seconds": round(served[1] - at, 3),
        "of_it_until_started_seconds": round(started[1] - at, 3),
        "serving_in_row_seconds": round(in_row.at - at, 3),
        "first_answer_seconds": round(answered - at, 3),
        "pod_not_ready_seconds": round(not_ready.at - at, 4) if not_ready else None,
    }


def _end(watches: Watches, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Until nothing of the replica is left; no rank is, from the kill on."""
    at = row["killed_at"]
    withdrawn = watches.slices.first(
        "no endpoint",
        lambda seen: _is_of(name, seen.found) and not _ready_endpoints(name, seen.found),
        since=at,
        seconds=WAIT_SECONDS,
    )

    return {"endpoint_withdrawn_seconds": round(withdrawn.at - at, 4), **kubelets_word(watches, since=at)}


def kubelets_word(watches: Watches, *, since: float, pod: str = "") -> dict[str, float | None]:
    """When the kubelet told of a death, in seconds after it; of one pod of several by its name."""

    def after(matches: Callable[[dict[str, Any]], bool]) -> float | None:
        try:
            seen = watches.pods.first(
                "", lambda seen: pod in ("", seen.name) and matches(seen.found), since=since, seconds=WAIT_SECONDS
            )
        except NotSeen:
            return None
        return round(seen.at - since, 4)

    return {
        "container_terminated_seconds": after(_engine_terminated),
        "pod_not_ready_seconds": after(lambda found: condition(found, "Ready") == "False"),
    }


def _engine_terminated(found: dict[str, Any]) -> bool:
    containers = found.get("status", {}).get("containerStatuses", [])
    return any("terminated" in container["state"] for container in containers)


def _is_of(service: str, found: dict[str, Any]) -> bool:
    return bool(found["metadata"]["labels"]["kubernetes.io/service-name"] == service)


def _ready_endpoints(service: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a slice, if it is the service's."""
    endpoints = (found.get("endpoints") or []) if _is_of(service, found) else []
    return [endpoint for endpoint in endpoints if endpoint.get("conditions", {}).get("ready")]


def _prompt(tokens: int) -> list[int]:
    return [random.randrange(32, 127) for _ in range(tokens)]


def _body(prompt: list[int]) -> dict[str, Any]:
    return {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 1, "temperature": 0}


def put_to_work(address: str) -> list[OpenStream]:
    """Touch the cache, and have streams under way."""
    prompts = [_prompt(TOUCHED_TOKENS) for _ in range(TOUCHED_PROMPTS)]
    with ThreadPoolExecutor(TOUCHED_PROMPTS) as pool:
        list(pool.map(lambda prompt: complete(address, prompt), prompts))
    body = {**_body(_prompt(64)), "max_tokens": CONTEXT_TOKENS - 128, "ignore_eos": True}
    return open_streams(address, body, count=STREAMS, seconds=WAIT_SECONDS)


def complete(address: str, prompt: list[int]) -> None:
    """One token after a prompt; anything but an answer raises."""
    body = json.dumps(_body(prompt)).encode()
    request = urllib.request.Request(f"http://{address}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
        answer.read()
