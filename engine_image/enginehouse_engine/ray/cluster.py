"""The Ray cluster of this replica, as the actor manager needs it: nodes, placement groups, actors, and how their calls end.

Invariants: nothing is detached, so that groups and actors go with this process, however it ends; nothing here waits for an actor:
how a call ends, whatever it ends with, Ray tells in a thread of its own, and :meth:`Cluster.dispatch` in the caller's.
Does not decide anything.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray._private import state as ray_state  # what the public API tells of these needs Ray's dashboard
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.ray_node import MEMBER_LABEL
from enginehouse_engine.ray.actors import EngineActor
from enginehouse_engine.ray.placement import Node

Refused: Final = (ray.exceptions.RayError, ValueError)
"""What Ray says of a name that is taken, and the like."""


@dataclass(frozen=True)
class Group:
    """A placement group as Ray sees it now."""

    created: bool
    removed: bool
    nodes: Mapping[int, str]
    """Of each bundle; empty string = none."""


@dataclass(frozen=True)
class Answer:
    """How a call of an actor ended: with a value or an error."""

    value: Any = None
    error: BaseException | None = None


class Cluster:
    """The connection of this process. One in a process."""

    def __init__(self, address: str, *, namespace: str, actor_class: type[EngineActor] = EngineActor) -> None:
        """Returns when the cluster has answered."""
        ray.init(address=address, namespace=namespace, log_to_driver=False, configure_logging=False)
        self._answers: queue.SimpleQueue[tuple[Callable[[Answer], None], Answer]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.own_node: str = ray.get_runtime_context().get_node_id()
        self._actor_class = ray.remote(actor_class)

    def nodes(self) -> list[Node]:
        """Those that live."""
        free = ray_state.available_resources_per_node()
        return [
            Node(
                id=node["NodeID"],
                name=node["NodeName"],
                member=_number(node["Labels"].get(MEMBER_LABEL, "")),
                total=node["Resources"],
                free=free.get(node["NodeID"], {}),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def make_group(self, name: str, *, count: int, resource: str, selector: dict[str, str], strategy: str) -> Any:
        """With ``count`` bundles of one ``resource``; returns before it is placed. Raises one of ``Refused``."""
        bundles, selectors = [{resource: 1} for _ in range(count)], [selector] * count
        return placement_group(bundles, strategy=strategy.upper(), name=name, bundle_label_selector=selectors)

    def look_at(self, group: Any) -> Group:
        """How it is now."""
        seen = placement_group_table(group)
        state = seen.get("state", "REMOVED")
        return Group(created=state == "CREATED", removed=state == "REMOVED", nodes=seen.get("bundles_to_node_id", {}))

    def remove_group(self, group: Any) -> None:
        """Returns before it is gone."""
        remove_placement_group(group)

    def make_actor(self, process: Process, *, name: str, group: Any, bundle: int | None, resource: str) -> Any:
        """In a bundle, or, taking nothing, in this process's own node. Returns before it runs. Raises one of ``Refused``."""
        options: dict[str, Any] = {"scheduling_strategy": NodeAffinitySchedulingStrategy(self.own_node, soft=False)}
        if bundle is not None:
            options = {"num_gpus": 1} if resource == "GPU" else {"resources": {resource: 1}}
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        return self._actor_class.options(name=name, num_cpus=0, max_restarts=0, max_task_retries=0, **options).remote(process)

    def call(self, method: Any, *arguments: Any, told: Callable[[Answer], None]) -> None:
        """A method of an actor. ``told`` in :meth:`dispatch` what it ended with."""
        method.remote(*arguments).future().add_done_callback(lambda future: self._queue(told, future))

    def fileno(self) -> int:
        """Readable when there is something to dispatch."""
        return self._wake

    def dispatch(self) -> None:
        """Tell what has come since."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while not self._answers.empty():
            told, answer = self._answers.get()
            told(answer)

    def _queue(self, told: Callable[[Answer], None], future: Future[Any]) -> None:
        error = future.exception()
        self._answers.put((told, Answer(error=error) if error else Answer(value=future.result())))
        os.eventfd_write(self._wake, 1)

    def kill(self, actor: Any) -> None:
        """Returns before it is gone. One that is gone already is no error."""
        ray.kill(actor)

    def is_gone(self, actor: Any) -> bool:
        """Ray knows nothing of it any more, or only that it is dead."""
        return bool(ray_state.state.actor_table(actor._actor_id.hex()).get("State", "DEAD") == "DEAD")


def _number(label: str) -> int | None:
    return int(label) if label.isdecimal() else None
