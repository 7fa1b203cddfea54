"""helm upgrade from an earlier commit's chart and images, and back, on a real kubelet: no pod is made again and none starts again.

The one job: both versions beside each other in living pods, in a cluster of their own: definitions and rights are everybody's.
That commit's definitions have every default of a spec that today's have, so one is taken out of them.
Not done here: every write that the two cause (`tests/api/operator/test_upgrade.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import earlier_tree
from killed_engine import MODEL, simulated
from localkube import cluster
from localkube.installation import SYSTEM_NAMESPACE, install
from simulated_engine import scaled

pytestmark = pytest.mark.cluster

FIELD, DEFAULT = "hang", {"stallSeconds": 120}
QUESTION = {"model": MODEL, "prompt": [65] * 8, "max_tokens": 4}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    try:
        tree = earlier_tree.make(tmp_path / "earlier")
    except earlier_tree.NoHistoryError as error:
        pytest.skip(str(error))
    earlier_tree.without(FIELD, chart=tree / "charts" / "enginehouse")
    return tree


@pytest.fixture
def fresh() -> Iterator[cluster.Cluster]:
    if "KUBECONFIG" in os.environ:
        pytest.skip("an earlier version is not put into a cluster of yours")
    started = cluster.start(f"upg{os.getpid()}")
    yield started
    started.stop()


def images(space: Any) -> list[set[str]]:
    """Of each pod, the oldest first."""
    pods = sorted(space.items("pods"), key=lambda pod: pod["metadata"]["creationTimestamp"])
    return [{made["image"] for made in pod["spec"]["initContainers"] + pod["spec"]["containers"]} for pod in pods]


def test_an_engine_lives_through_an_upgrade_from_an_earlier_commit_and_back(
    earlier: Path, fresh: cluster.Cluster, new_space: Any
) -> None:
    def helm(*arguments: str) -> str:
        return fresh.helm("--namespace", SYSTEM_NAMESPACE, *arguments, timeout_seconds=150)

    def restarts() -> int:
        return int(space.get("ie/kept")["status"]["restarts"])

    installed = install(fresh, tree=earlier)
    with new_space(installed) as space:
        space.apply(simulated("kept"))
        space.wait("Ready", name="kept")
        assert FIELD not in space.get("ie/kept")["spec"]
        (first,) = space.items("pods")
        one = space.lives()

        today = install(fresh)
        space.eventually("the new schema holds", lambda: space.get("ie/kept")["spec"].get(FIELD) == DEFAULT)
        two = scaled(space, 2, name="kept")
        assert one.items() <= two.items()
        assert "kill -9" in installed.kill_engine_cores(first["metadata"]["name"], namespace=space.namespace)
        space.eventually("the earlier monitor tells of a death", lambda: restarts() == 1)
        space.wait("Ready", name="kept")

        helm("rollback", "enginehouse", "1", "--wait", "--timeout", "120s")
        space.eventually("the earlier schema holds again", lambda: FIELD not in space.get("ie/kept")["spec"])
        three = scaled(space, 3, name="kept")
        assert one.items() < two.items() < three.items()
        earlier_images, new_images = ({found.operator_image, found.engine_image} for found in (installed, today))
        assert images(space) == [earlier_images, new_images, earlier_images]

        helm("uninstall", "enginehouse", "--wait", "--timeout", "120s")
        assert space.post("kept", "/v1/completions", QUESTION)[0] == 200
        assert space.lives() == three
        space.kubectl("delete", "ie/kept")
        space.eventually("nothing is left of it", lambda: space.items("pods,ier") == [])
