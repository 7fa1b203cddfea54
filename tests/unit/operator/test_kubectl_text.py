"""What ``kubectl enginehouse`` draws and says: trees, ages, colours, merged logs, and whom it evicts."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from memory_stage import NOW, PODS, REPLICAS, Stage

from enginehouse_operator.kubectl import drain
from enginehouse_operator.kubectl.flags import parse
from enginehouse_operator.kubectl.merged_logs import in_order
from enginehouse_operator.kubectl.text import Cell, Screen, age
from enginehouse_operator.kubectl.tree import EngineNode, tree
from enginehouse_operator.kubectl.tree_text import tree_text

ROOT = Path(__file__).parents[3]
TWO_PODS = {"parallelism": {"data": 2, "workersPerMember": 1}}


def node(stage: Stage) -> EngineNode:
    return tree(stage.api.objects["inferenceengines", "e"], replicas=stage.api.of(REPLICAS), pods=stage.api.of(PODS))


async def two_members() -> Stage:
    """One replica of two pods; the second rank is being started again, and one API server serves."""
    stage = Stage(**TWO_PODS)
    await stage.settle()
    (replica,) = stage.api.of(REPLICAS)
    rows = []
    for number, pod in enumerate(stage.api.of(PODS)):
        name = pod["metadata"]["name"]
        stage.change(PODS, name, spec={"nodeName": f"node-{number}"}, status={"phase": "Running"})
        ranks = [{"rank": number, "incarnation": 1 + number, "state": ("Serving", "Restarting")[number]}]
        ranks[0] |= {"maxContextLength": 4096} if number == 0 else {}
        row = {"name": name, "uid": pod["metadata"]["uid"], "state": "Serving", "ranks": ranks}
        rows.append(row | ({"apiServers": [{"index": 0, "incarnation": 1, "state": "Serving"}]} if number == 0 else {}))
    stage.change(REPLICAS, replica["metadata"]["name"], status={"members": rows})
    return stage


TREE = """\
NAME                            READY   STATE        CONTEXT   AGE   DETAIL
engine/e                        False   Starting               1h    http://e.n.svc
└─replica/e-0-crw266kk          False   Starting     4096      1h    index 0, epoch 1
  ├─pod/e-0-crw266kk-kd2z5buj   False   Serving                1h    leader on node-0
  │ ├─rank 0                            Serving      4096
  │ └─API server 0                      Serving
  └─pod/e-0-crw266kk-yfmd7z3y   False   Serving                1h    worker on node-1
    └─rank 1                            Restarting                   incarnation 2
"""


async def test_the_tree_shows_replicas_and_members_with_their_age_and_ranks_with_their_context() -> None:
    assert tree_text([node(await two_members())], screen=Screen(), now=NOW) == TREE


async def test_without_colours_the_text_is_the_same_and_with_them_only_colours_are_added() -> None:
    found = node(await two_members())
    plain, coloured = (tree_text([found], screen=Screen(has_colours=on), now=NOW) for on in (False, True))
    assert "\x1b" not in plain
    assert "\x1b[33mRestarting\x1b[0m" in coloured
    assert msgspec.json.encode(coloured) != msgspec.json.encode(plain)
    for code in ("\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain


async def test_the_tree_as_json_has_names_of_the_api_and_times_instead_of_ages() -> None:
    found = msgspec.json.decode(msgspec.json.encode(node(await two_members())))
    (replica,) = found["replicas"]
    assert (found["ready"], found["state"], found["maxContextLength"]) == (False, "Starting", None)
    assert (replica["maxContextLength"], replica["created"]) == (4096, "2026-01-01T00:00:00Z")
    leader, worker = replica["members"]
    assert leader["ranks"] == [{"incarnation": 1, "state": "Serving", "rank": 0, "maxContextLength": 4096}]
    assert leader["apiServers"] == [{"incarnation": 1, "state": "Serving", "index": 0}]
    assert (worker["role"], worker["node"]) == ("worker", "node-1")


def test_an_engine_that_no_operator_has_looked_at_is_shown_as_that() -> None:
    shown = tree_text([node(Stage())], screen=Screen(), now=NOW)
    assert shown.splitlines()[1].split()[:3] == ["engine/e", "False", "NotObserved"]


def gone(stage: Stage, pod: dict[str, Any]) -> None:
    del stage.api.objects[PODS, pod["metadata"]["name"]]


def leaving(stage: Stage, pod: dict[str, Any]) -> None:
    stage.change(PODS, pod["metadata"]["name"], metadata={"deletionTimestamp": "2026-01-01T01:00:00Z"})


def waiting(stage: Stage, pod: dict[str, Any]) -> None:
    state = {"waiting": {"reason": "ErrImagePull"}}
    stage.change(PODS, pod["metadata"]["name"], status={"containerStatuses": [{"name": "engine", "image": "i", "state": state}]})


def failed(stage: Stage, pod: dict[str, Any]) -> None:
    stage.change(PODS, pod["metadata"]["name"], status={"phase": "Failed"})


@pytest.mark.parametrize(
    ("happens", "state"), [(gone, "Gone"), (leaving, "Terminating"), (waiting, "ImageNotAvailable"), (failed, "Failed")]
)
async def test_what_happened_to_a_pod_goes_before_what_its_monitor_said_last(
    happens: Callable[[Stage, dict[str, Any]], None], state: str
) -> None:
    stage = await two_members()
    happens(stage, stage.api.of(PODS)[1])
    members = node(stage).replicas[0].members
    assert [member.state for member in members] == ["Serving", state]
    assert members[1].ranks, "its row is shown for as long as it is there"


AGES = {
    0: "0s",
    59: "59s",
    61: "1m1s",
    700: "11m",
    3600: "1h",
    3660: "1h1m",
    90000: "1d1h",
    9_000_000: "104d",
    -5: "0s",  # another machine's clock
}


@pytest.mark.parametrize(("seconds", "text"), AGES.items())
def test_ages_are_short(seconds: int, text: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), now=NOW) == text
    assert age(None, now=NOW) == ""


def test_a_cell_cannot_move_the_cursor() -> None:
    assert Screen().table([[Cell("a\x1b[2Jb\n")], [Cell("c")]]) == "a [2Jb\nc\n"


def test_lines_of_several_containers_are_put_in_the_order_of_their_time_and_keep_what_follows_them() -> None:
    lines = [
        "[pod/a/engine] 2026-01-01T00:00:01.500000000Z first",
        "[pod/a/engine] 2026-01-01T00:00:03Z third",
        "and what belongs to it",
        "[pod/b/monitor] 2026-01-01T01:00:02.5+01:00 second",
        "[pod/b/monitor] 2026-01-01T00:00:04Z ",
    ]
    assert in_order(lines) == [
        "[pod/a/engine] first",
        "[pod/b/monitor] second",
        "[pod/a/engine] third",
        "and what belongs to it",
        "[pod/b/monitor] ",
    ]


async def test_for_a_replica_its_leader_is_evicted_and_nobody_elses_pod() -> None:
    stage = await two_members()
    (replica,), (leader, worker) = stage.api.of(REPLICAS), stage.api.of(PODS)
    foreign = worker | {"metadata": worker["metadata"] | {"name": "foreign", "ownerReferences": []}}
    assert drain.leader_of(replica, [foreign, worker, leader]) == leader
    assert drain.leader_of(replica, [worker]) == worker
    assert drain.leader_of(replica, [foreign]) is None
    assert drain.replica_of(worker) == replica["metadata"]["name"]
    assert drain.replica_of({"metadata": {"name": "other"}}) is None
    assert not drain.is_leaving(leader, replica)
    assert drain.is_leaving(leader, replica | {"spec": replica["spec"] | {"end": {"reason": "Rollout"}}})
    assert "e-0-crw266kk drains" in drain.drained_words(leader, "e-0-crw266kk")
    assert "within 100 s" in drain.drained_words(leader, "e-0-crw266kk")


async def test_a_refused_eviction_says_how_many_pods_the_budget_wants_and_there_are() -> None:
    stage = await two_members()
    leader, _ = stage.api.of(PODS)
    budget = {"metadata": {"name": "e-members"}, "status": {"disruptionsAllowed": 0, "desiredHealthy": 3, "currentHealthy": 2}}
    words = drain.refused_words(leader, [budget], "said")
    assert "e-members wants 3 ready pods of engine e, and there are 2" in words
    assert "spec.rollout.maxUnavailable" in words
    assert "(kubectl enginehouse why e -n n)" in words
    other = {"metadata": {"name": "somebody's"}, "status": budget["status"]}
    for budgets in ([other], [], [budget | {"status": {}}], [budget | {"status": budget["status"] | {"disruptionsAllowed": 1}}]):
        assert drain.refused_words(leader, budgets, "said").endswith(": said")


def test_flags_of_the_cluster_are_passed_on_to_kubectl() -> None:
    flags = parse(["why", "e", "-n", "team", "--context=prod", "-o", "json"])
    assert (flags.verb, flags.name, flags.as_json) == ("why", "e", True)
    assert flags.kubectl_options == ("--namespace=team", "--context=prod")
    assert flags.cluster_options == ("--context=prod",)


NONSENSE = (["why"], ["drain"], ["logs"], ["nothing"], ["status", "-o", "yaml"], ["drain", "x", "-o", "json"], [])


@pytest.mark.parametrize("arguments", NONSENSE, ids=" ".join)
def test_what_makes_no_sense_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(arguments)
    assert exit_.value.code == 2
    assert "usage: kubectl enginehouse" in capsys.readouterr().err


def test_the_script_that_kubectl_looks_for_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["kubectl-enginehouse"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
