"""Which pod to evict when a person wants a replica, or a pod, out of service; and the words for what came of it.

Invariant: pure. An eviction of any member lets its whole replica drain and end as planned, with a successor: nothing else is
written, so the operator decides everything that follows. Does not evict (``cluster.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from enginehouse_operator import names, observe

from .next_steps import on_cluster

Raw = Mapping[str, Any]


def leader_of(replica: Raw, pods: Iterable[Raw]) -> Raw | None:
    """The pod to evict for a replica: its leader, else the first that is there; None when there is none."""
    members = observe.owned(pods, replica["metadata"]["uid"])
    return min(members, key=lambda pod: int(_labels(pod).get(names.LABEL_ORDINAL, 0)), default=None)


def replica_of(pod: Raw) -> str | None:
    """The replica that the pod belongs to; None: it is no member of an engine."""
    return _labels(pod).get(names.LABEL_REPLICA)


def is_leaving(pod: Raw, replica: Raw | None) -> bool:
    """It drains already."""
    return "deletionTimestamp" in pod["metadata"] or (replica is not None and "end" in replica["spec"])


def drained_words(pod: Raw, replica: str, *, cluster_options: Iterable[str] = ()) -> str:
    """After an eviction that was allowed."""
    engine, namespace = _labels(pod).get(names.LABEL_ENGINE, ""), pod["metadata"]["namespace"]
    then = on_cluster(f"kubectl enginehouse status {engine} -n {namespace}", cluster_options)
    seconds = pod["spec"].get("terminationGracePeriodSeconds", 0)
    return (
        f"replica {replica} drains: pod {pod['metadata']['name']} is evicted, finishes its requests and is gone "
        f"within {seconds} s; a successor is made.\n  $ {then}"
    )


def refused_words(pod: Raw, budgets: Iterable[Raw], said: str, *, cluster_options: Iterable[str] = ()) -> str:
    """After an eviction that a budget of disruptions did not allow; ``said`` by the API server."""
    engine, name = _labels(pod).get(names.LABEL_ENGINE, ""), pod["metadata"]["name"]
    budget = names.disruption_budget_name(engine)
    ours = next((found for found in budgets if found["metadata"]["name"] == budget), None)
    status = {} if ours is None else ours.get("status") or {}
    if ours is None or status.get("disruptionsAllowed", 0) > 0 or "desiredHealthy" not in status:
        return f"pod {name} may not be evicted now: {said}"  # somebody else's, or one that has not been counted yet
    why = on_cluster(f"kubectl enginehouse why {engine} -n {pod['metadata']['namespace']}", cluster_options)
    return (
        f"pod {name} may not be evicted now: disruption budget {budget} wants {status['desiredHealthy']} ready pods of engine "
        f"{engine}, and there are {status['currentHealthy']}. Wait until all its replicas are Ready "
        f"({why}), or raise spec.replicas or spec.rollout.maxUnavailable."
    )


def _labels(pod: Raw) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}
