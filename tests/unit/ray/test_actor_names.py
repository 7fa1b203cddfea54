"""Names of actors and groups."""

import pytest

from enginehouse_engine.launcher.process import ENGINE_CORE, WORKER, Process
from enginehouse_engine.ray.actor_names import actor_name, group_name


@pytest.mark.parametrize(
    ("process", "name"),
    [
        (Process(ENGINE_CORE, 0, 0, 1), "chat-r0-i1-core"),
        (Process(WORKER, 0, 0, 1), "chat-r0-i1-tp0-pp0"),
        (Process(WORKER, 2, 1, 3), "chat-r2-i3-tp1-pp0"),
        (Process(WORKER, 2, 4, 3), "chat-r2-i3-tp0-pp2"),
    ],
)
def test_a_name_tells_engine_rank_incarnation_and_position(process: Process, name: str) -> None:
    assert actor_name("chat", process, tensor=2) == name
    assert name.startswith(group_name("chat", rank=process.rank or 0, incarnation=process.incarnation))
