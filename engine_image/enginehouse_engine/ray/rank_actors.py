"""One incarnation of a rank in Ray: its placement group, then its actors, then nothing of both.

Pending, or Lacking -> (placed: actors are created, say where they are) -> running -> Removing -> gone.

Invariants: actors are told to run when all of the rank have said where they are; an actor whose call has ended is killed, since Ray
keeps a process that has nothing to do; only when Ray has neither actors nor group any more it is gone. Nothing is tried again, and
with one actor's end nothing happens to the others: the launcher decides.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from enginehouse_engine.launcher.process import ENGINE_CORE, WORKER, Process
from enginehouse_engine.ray import placement
from enginehouse_engine.ray.actor_names import actor_name, group_name
from enginehouse_engine.ray.cluster import Answer, Cluster, Group, Refused
from enginehouse_engine.ray.manager_messages import Actors, Bundle, Ended, How, PlacementState, RankPlacement, WantedRank
from enginehouse_engine.ray.placement import Node, PlacementRefused
from enginehouse_engine.ray.run_outcome import how_it_ended, message_of

logger = logging.getLogger("enginehouse.actors")

ACTOR_START_SECONDS: Final = 60.0
"""From the placement until an actor answers: a Python start, on a busy machine."""

ACTOR_TURN_SECONDS: Final = 5.0
"""The same for each actor of all ranks, where that is longer: a node of Ray starts one process after the other, on a quiet machine
one in a second."""

SHORT_SECONDS: Final = 1.0
"""Free amounts are of a moment ago, and a group has its bundles before it says so: what lasts longer is a shortage."""


@dataclass
class _Actor:
    process: Process
    name: str
    handle: Any
    where: Any = None
    over: bool = False


@dataclass
class RankActors:
    """``plan`` is the launcher's whole word, of which ``wanted`` is one rank; ``tell`` is for actors that are over."""

    cluster: Cluster
    wanted: WantedRank
    plan: Actors
    tensor: int
    tell: Callable[[Ended], None]
    bundles: tuple[Bundle, ...] = ()
    is_gone: bool = False
    _group: Any = None
    _actors: list[_Actor] = field(default_factory=list)
    _nodes: dict[int, Node] = field(default_factory=dict)
    """Of each bundle, when it was placed."""
    _short_since: float = math.inf
    _is_short: bool = False
    _start_seconds: float = ACTOR_START_SECONDS
    _start_by: float = 0.0
    _running: bool = False
    _removing: bool = False
    _over: bool = False
    """Could not be placed or started as a whole."""

    def create(self) -> None:
        """Ask for the group."""
        wanted = self.wanted
        try:
            placement.check(wanted)
            self._group = self.cluster.make_group(
                group_name(self.plan.engine, rank=wanted.rank, incarnation=wanted.incarnation),
                count=placement.bundle_count(wanted),
                resource=self.plan.resource,
                selector=placement.label_selector(wanted),
                strategy=self.plan.strategy,
            )
        except (PlacementRefused, *Refused) as error:
            self._refused(error)

    def remove(self) -> None:
        """Nobody wants it any more. Again is no harm."""
        if self._removing:
            return
        self._removing = True
        for actor in self._actors:
            self.cluster.kill(actor.handle)
        if self._group is not None:
            self.cluster.remove_group(self._group)

    @property
    def is_settled(self) -> bool:
        """Nothing is under way that only looking tells."""
        return not self._removing and (self._running or self._over)

    @property
    def placement(self) -> RankPlacement:
        """For the launcher."""
        state = PlacementState.LACKING if self._is_short else PlacementState.PENDING
        state = PlacementState.PLACED if self._nodes else state
        return RankPlacement(
            rank=self.wanted.rank,
            incarnation=self.wanted.incarnation,
            strategy=self.plan.strategy,
            state=PlacementState.REMOVING if self._removing else state,
            bundles=self.bundles,
        )

    def look(self, nodes: Sequence[Node], *, now: float) -> None:
        """See how things are in the cluster, and go on."""
        if self._removing:
            self.is_gone = (self._group is None or self.cluster.look_at(self._group).removed) and all(
                self.cluster.is_gone(actor.handle) for actor in self._actors
            )
        elif self._group is not None:
            group = self.cluster.look_at(self._group)
            if self._nodes:
                self.bundles = tuple(_placed(index, node, group) for index, node in sorted(self._nodes.items()))
            elif group.created and not self._over:
                self._start(group, nodes, now=now)
            else:
                self._wait(nodes, now=now)
            if self._nodes and not self._running and now >= self._start_by:
                self._late()

    def _wait(self, nodes: Sequence[Node], *, now: float) -> None:
        lacking = placement.lacking(self.wanted, resource=self.plan.resource, nodes=nodes)
        self.bundles = tuple(Bundle(i, PlacementState.PENDING, lacking=text) for i, text in enumerate(lacking))
        is_short = any(lacking) and placement.have_joined(self.wanted, nodes)
        self._short_since = min(self._short_since, now) if is_short else math.inf
        self._is_short = now >= self._short_since + SHORT_SECONDS

    def _start(self, group: Group, nodes: Sequence[Node], *, now: float) -> None:
        wanted = self.wanted
        by_id = {node.id: node for node in nodes}
        if not set(group.nodes.values()) <= by_id.keys():
            return  # A node that has just come or gone: looked at again soon.
        self._nodes = {index: by_id[node] for index, node in group.nodes.items()}
        actors = sum(1 + len(rank.members) for rank in self.plan.ranks)
        self._start_seconds = max(ACTOR_START_SECONDS, ACTOR_TURN_SECONDS * actors)
        self._start_by = now + self._start_seconds
        self.bundles = tuple(_placed(index, node, group) for index, node in sorted(self._nodes.items()))
        try:
            places = placement.positions(wanted, placed=group.nodes, nodes=nodes, driver=self.cluster.own_node)
            self._make(Process(ENGINE_CORE, wanted.rank, 0, wanted.incarnation), bundle=None)
            for index, bundle in enumerate(places):
                self._make(Process(WORKER, wanted.rank, index, wanted.incarnation, member=wanted.members[index]), bundle=bundle)
        except (PlacementRefused, *Refused) as error:
            self._refused(error)
            return
        for actor in self._actors:
            self.cluster.call(actor.handle.where, told=partial(self._said_where, actor))

    def _make(self, process: Process, *, bundle: int | None) -> None:
        name = actor_name(self.plan.engine, process, tensor=self.tensor)
        handle = self.cluster.make_actor(process, name=name, group=self._group, bundle=bundle, resource=self.plan.resource)
        self._actors.append(_Actor(process, name, handle))

    def _said_where(self, actor: _Actor, answer: Answer) -> None:
        actor.where = answer.value
        if answer.error is not None:
            self._ended(actor, answer)
        elif not self._removing and not self._over and all(other.where is not None for other in self._actors):
            self._running = True
            workers = [other.where for other in self._actors if other.process.role == WORKER]
            for other in self._actors:
                self.cluster.call(other.handle.run, workers, told=partial(self._ended, other))

    def _late(self) -> None:
        self._over = True
        for actor in self._actors:
            if actor.where is None:
                error = TimeoutError(f"{actor.name} did not start in {self._start_seconds:.0f} s")
                self._ended(actor, Answer(error=error))

    def _ended(self, actor: _Actor, answer: Answer) -> None:
        if self._running and not actor.over:
            logger.info("the run of %s has ended, its removal %s asked for", actor.name, "was" if self._removing else "was not")
        how = None if actor.over else how_it_ended(answer.error, running=self._running, asked=self._removing)
        actor.over = True
        self._over = self._over or not self._running
        if how is not None:
            self._tell(actor.process, how, message_of(answer.error))
            self.cluster.kill(actor.handle)

    def _refused(self, error: BaseException) -> None:
        self._over = True
        self._tell(Process(ENGINE_CORE, self.wanted.rank, 0, self.wanted.incarnation), How.NOT_STARTED, str(error))

    def _tell(self, process: Process, how: How, message: str) -> None:
        self.tell(Ended(process.role, self.wanted.rank, process.index, process.incarnation, how, message))


def _placed(index: int, node: Node, group: Group) -> Bundle:
    """A bundle that Ray has moved is lost, too: its worker was where it was."""
    state = PlacementState.PLACED if group.nodes.get(index) == node.id else PlacementState.LOST
    return Bundle(index, state, node=node.name)
