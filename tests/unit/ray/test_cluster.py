"""What the manager makes of what Ray says of an actor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from enginehouse_engine.ray.cluster import Cluster


@pytest.mark.parametrize(
    ("said", "is_gone"),
    [
        pytest.param({}, True, id="nothing: it has forgotten it"),
        ({"State": "DEAD"}, True),
        ({"State": "ALIVE"}, False),
        ({"State": "PENDING_CREATION"}, False),
    ],
)
def test_an_actor_is_gone_when_ray_calls_it_dead_or_knows_it_no_more(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], is_gone: bool
) -> None:
    monkeypatch.setattr("enginehouse_engine.ray.cluster.ray_state.state", SimpleNamespace(actor_table=lambda number: said))
    actor = SimpleNamespace(_actor_id=b"")
    assert Cluster.__new__(Cluster).is_gone(actor) is is_gone
