"""When a change of an engine is over: all that is wanted serves, and nothing of the past is left.

The one job: the goals that tests wait for before they compare worlds. Not done here: waiting (stage.py), comparing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stage import Stage


def is_settled(stage: Stage, replicas: int, *, name: str = "one") -> Callable[[], bool]:
    def settled() -> bool:
        engine = stage.engine(name)
        status = engine.get("status", {})
        ready = [found for found in status.get("conditions", ()) if found["type"] == "Ready"]
        return bool(
            status.get("observedGeneration") == engine["metadata"]["generation"]
            and [found["status"] for found in ready] == ["True"]
            and status["readyReplicas"] == status["replicas"] == replicas
            and len(stage.pods()) == replicas * members(engine)
            and ended_in_order(stage)
            and rows_are_of_pods(stage)
            and not stage.garbage()
        )

    return settled


def members(engine: dict[str, Any]) -> int:
    shape = engine["spec"]["parallelism"]
    of_rank = shape["tensor"] * shape["pipeline"]
    held = of_rank if engine["spec"]["executor"] == "Ray" else shape["data"] * of_rank
    return int(shape["data"] * of_rank // shape.get("workersPerMember", held))


def rows_are_of_pods(stage: Stage) -> bool:
    """Of replicas that live: a row that is left of a member that went is the operator's to take away."""
    pods = {pod["metadata"]["name"] for pod in stage.pods()}
    return all(
        row["name"] in pods
        for raw in stage.replicas()
        if "end" not in raw["spec"]
        for row in raw.get("status", {}).get("members", ())
    )


def ended_in_order(stage: Stage) -> bool:
    """Every replica that was asked to end has, and is gone if another holds its index."""
    replicas = stage.replicas()
    live = {raw["spec"]["index"] for raw in replicas if "end" not in raw["spec"]}
    ended = [raw for raw in replicas if "end" in raw["spec"]]
    over = [
        raw
        for raw in ended
        for found in raw.get("status", {}).get("conditions", ())
        if (found["type"], found["status"]) == ("Ended", "True")
    ]
    return len(over) == len(ended) and live.isdisjoint(raw["spec"]["index"] for raw in ended)


def is_deleted(stage: Stage) -> Callable[[], bool]:
    return lambda: stage.picture()["engines"] == {} and not stage.pods() and not stage.replicas()
