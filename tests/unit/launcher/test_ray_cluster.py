"""What the actor manager is told."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from engine_story import KILLED, Story
from enginehouse_engine.launcher import remote_workers
from enginehouse_engine.launcher.actors import Actors
from enginehouse_engine.launcher.children import Children
from enginehouse_engine.launcher.control import ControlServer
from enginehouse_engine.launcher.member_messages import Report, WorkerState
from enginehouse_engine.launcher.process import Process
from enginehouse_engine.launcher.rank_set import RankSet
from enginehouse_engine.launcher.ray_cluster import RayCluster
from enginehouse_engine.launcher.units import engine_units
from enginehouse_engine.options import Options

OPTIONS = SimpleNamespace(member=0, engine_name="e", replica_uid="uid", ray_strategy="Pack")


class Control:
    def __init__(self) -> None:
        self.lists: list[list[tuple[int, int]]] = []
        """Ranks and incarnations."""

    def send(self, process: Process, message: dict[str, Any]) -> None:
        self.lists.append([(rank["rank"], rank["incarnation"]) for rank in message["ranks"]])


def test_an_incarnation_that_has_left_the_list_is_not_asked_for_again_when_a_worker_of_it_is_told_of_late() -> None:
    story = Story(ray=True, ranks=2, workers=1)
    life, control = story.life, Control()
    life.units = engine_units(api_servers=1, ranks=2, workers=1, workers_each=1)
    life.ranks = RankSet(2, workers=1, workers_each=1)
    ray = RayCluster(
        cast(Options, OPTIONS),
        life=life,
        children=cast(Children, None),
        actors=cast(Actors, SimpleNamespace(retry_at=math.inf)),
        control=cast(ControlServer, control),
        directory=Path("/run"),
    )
    story.start_ray()
    ray.bring_up_to_date()
    core = story.cores[1]
    life.started(core, pid=7)
    life.registered(core)
    life.resized(1)
    life.exited(core, exit=KILLED, out_of_memory=False)
    ray.bring_up_to_date()
    remote_workers.reported(
        life, 1, Report(leaving=False, workers=(WorkerState(rank=1, index=0, pid=8, registered=True, stage=""),))
    )
    ray.bring_up_to_date()
    assert control.lists == [[(0, 1), (1, 1)], [(0, 1)]]
    assert remote_workers.orders(life, 1).ranks[0].end == "kill"
