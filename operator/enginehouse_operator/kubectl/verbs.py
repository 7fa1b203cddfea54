"""The four verbs: read with kubectl, let the pure modules decide and draw, print. Each returns the exit code.

Invariant: an answer goes to standard output, a complaint to standard error. Does not decide, does not draw.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import msgspec

from enginehouse_operator import names

from .cluster import Kubectl, KubectlError, Refused
from .drain import drained_words, is_leaving, leader_of, refused_words, replica_of
from .flags import Flags
from .merged_logs import in_order
from .text import Screen
from .tree import tree
from .tree_text import tree_text
from .why import why
from .why_text import why_text

ENGINES: Final = f"inferenceengines.{names.GROUP}"
REPLICAS: Final = f"enginereplicas.{names.GROUP}"
MOST_LOGS: Final = 1000
"""Containers whose logs are followed at once: kubectl's own limit is 5."""
NOT_NOW: Final = 1

Raw = Mapping[str, Any]


def status(kubectl: Kubectl, flags: Flags) -> int:
    found = kubectl.get(ENGINES, flags.name) if flags.name else kubectl.get(ENGINES)
    if flags.name and not found:
        _missing("InferenceEngine", flags.name)
    replicas, pods = _parts(kubectl, flags.name)
    engines = [tree(engine, replicas=replicas, pods=pods) for engine in found]
    if flags.as_json:
        _print_json({"engines": engines})
    elif engines:
        sys.stdout.write(tree_text(engines, screen=_screen(), now=datetime.now(UTC)))
    else:
        print("there are no InferenceEngines in this namespace", file=sys.stderr)
    return 0


def why_not(kubectl: Kubectl, flags: Flags) -> int:
    engine = _engine(kubectl, flags)
    replicas, pods = _parts(kubectl, flags.name)
    try:
        events = kubectl.get("events", "--field-selector=type=Warning,involvedObject.kind=Pod", quietly=True)
    except KubectlError as error:  # they say little that the rest does not: whoever may not read them does without
        print(f"without Events: {error}", file=sys.stderr)
        events = []
    answer = why(engine, replicas=replicas, pods=pods, events=events, cluster_options=flags.cluster_options)
    if flags.as_json:
        _print_json(answer)
    else:
        sys.stdout.write(why_text(answer, screen=_screen()))
    return 0 if answer.ready else NOT_NOW


def drain(kubectl: Kubectl, flags: Flags) -> int:
    pod, replica = _to_evict(kubectl, flags.name or "")
    name = replica_of(pod)
    if name is None:
        raise KubectlError(f"pod {flags.name} is no member of an engine")
    if is_leaving(pod, replica):
        print(f"replica {name} is on its way out already")
        return 0
    try:
        kubectl.evict(pod)
    except Refused as error:
        print(refused_words(pod, _budgets(kubectl), str(error), cluster_options=flags.cluster_options), file=sys.stderr)
        return NOT_NOW
    print(drained_words(pod, name, cluster_options=flags.cluster_options))
    return 0


def logs(kubectl: Kubectl, flags: Flags) -> int:
    _engine(kubectl, flags)
    # A container that has not started yet is an error of its own line, and hides no other.
    command = ["logs", f"--selector={names.LABEL_ENGINE}={flags.name}"]
    command += ["--all-containers", "--prefix", "--tail=-1", "--ignore-errors"]
    command += [f"--since={flags.since}"] if flags.since else []
    if flags.follow:
        kubectl.become(*command, "--follow", f"--max-log-requests={MOST_LOGS}")
    lines = in_order(kubectl.read(*command, "--timestamps").rstrip("\n").split("\n"))
    sys.stdout.writelines(f"{line}\n" for line in lines if line)
    return 0


def _engine(kubectl: Kubectl, flags: Flags) -> Raw:
    found = kubectl.get(ENGINES, flags.name or "")
    return found[0] if found else _missing("InferenceEngine", flags.name or "")


def _parts(kubectl: Kubectl, engine: str | None) -> tuple[list[Raw], list[Raw]]:
    """Replicas and pods of an engine, or of all. Replicas are read first: a row that is seen belongs to a pod that existed."""
    selector = f"{names.LABEL_ENGINE}={engine}" if engine else names.LABEL_ENGINE
    found = kubectl.get(f"{REPLICAS},pods", f"--selector={selector}")
    pods = [raw for raw in found if raw["kind"] == "Pod"]
    return [raw for raw in found if raw["kind"] == names.REPLICA_KIND], pods


def _to_evict(kubectl: Kubectl, name: str) -> tuple[Raw, Raw | None]:
    """The pod, and its replica as far as that is known."""
    replica = next(iter(kubectl.get(REPLICAS, name)), None)
    if replica is not None:
        leader = leader_of(replica, kubectl.get("pods", f"--selector={names.LABEL_REPLICA}={name}"))
        if leader is None:
            raise KubectlError(f"replica {name} has no pod: there is nothing to drain")
        return leader, replica
    pods = kubectl.get("pods", name)
    return (pods[0], None) if pods else _missing("EngineReplica or pod", name)


def _budgets(kubectl: Kubectl) -> list[Raw]:
    """None where they may not be read: the API server's own words have to do then."""
    try:
        return kubectl.get("poddisruptionbudgets.policy", quietly=True)
    except KubectlError:
        return []


def _missing(kind: str, name: str) -> NoReturn:
    raise KubectlError(f"there is no {kind} {name} in this namespace (-n names another one)")


def _screen() -> Screen:
    is_terminal = sys.stdout.isatty()
    return Screen(has_colours=is_terminal, columns=shutil.get_terminal_size().columns if is_terminal else Screen().columns)


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
