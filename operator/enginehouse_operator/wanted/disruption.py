"""The disruption budget of an engine: how many of its members an eviction may take away (`kubectl drain`, cluster autoscalers).

Invariant: evictions alone never take more than ``rollout.maxUnavailable`` replicas out of service, operator or not. A replica is of
no use without any one of its members, and a budget counts pods: so as many pods may be missing as replicas may. A replica that does
not serve has a pod that is not ready, and counts as one that is missing already.
Members of an ending replica neither help nor hold anything up: they are being deleted, and Kubernetes counts no such pod.
Does not apply anything.
"""

from __future__ import annotations

from typing import Any

from enginehouse_operator import names
from enginehouse_operator.api import EngineSpec

from .metadata import Owner, marked, metadata


def disruption_budget(owner: Owner, spec: EngineSpec) -> dict[str, Any]:
    """``owner`` is the engine. An integer: pods of a controller that Kubernetes does not know allow nothing else."""
    return marked(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(owner, names.disruption_budget_name(owner.engine), labels={}),
            "spec": {
                "minAvailable": min_available(spec),
                "selector": {"matchLabels": {names.LABEL_ENGINE: owner.engine}},
                # A pod that starts, or is broken, keeps no node from being drained.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
    )


def min_available(spec: EngineSpec) -> int:
    """Ready members that have to be left. 0 where all replicas may be away at once."""
    if spec.desired_replicas <= spec.rollout.max_unavailable:
        return 0
    return spec.desired_replicas * spec.members - spec.rollout.max_unavailable
