"""What an actor finds out about itself, without Ray."""

from __future__ import annotations

import os

import pytest

from enginehouse_engine.launcher.process import WORKER, Process
from enginehouse_engine.ray.actors import EngineActor, RunFailed, Where, devices_of


def test_an_actor_in_a_node_without_a_launcher_is_not_constructed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINEHOUSE_RUN_DIRECTORY", raising=False)
    with pytest.raises(RunFailed, match="its raylet was not started by a launcher"):
        EngineActor(Process(WORKER, 0, 0, 1))


@pytest.mark.parametrize(
    ("workers", "index", "seen", "own"),
    [
        pytest.param([("a", "3"), ("a", "1")], 0, "1,3", 1, id="in one order, whoever has what"),
        pytest.param([("a", "3"), ("a", "1")], 1, "1,3", 0, id="its neighbour"),
        pytest.param([("a", "0"), ("b", "2"), ("b", "10")], 2, "2,10", 1, id="of its own node alone, counted as numbers"),
        pytest.param([("a", "GPU-f"), ("a", "GPU-0")], 0, "GPU-0,GPU-f", 1, id="by other names"),
    ],
)
def test_the_workers_of_a_rank_see_their_devices_of_a_node_and_nobody_elses(
    workers: list[tuple[str, str]], index: int, seen: str, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as Ray has it")
    view = [Where(node=node, pid=1, devices=(device,)) for node, device in workers]
    assert devices_of(view, index) == ["--device", str(own)]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_without_devices_nothing_is_said_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices_of([Where(node="a", pid=1, devices=())], 0) == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
