"""The actor manager with a real Ray of one node: what it makes, how it tells ends apart, and that it removes everything."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actor_manager_process import PATIENCE_SECONDS, ActorManagerProcess

Start = Callable[..., ActorManagerProcess]


def running(manager: ActorManagerProcess, *ranks: int) -> dict[tuple[str, int], int]:
    """Pids of the cores and first workers of ranks that were asked for."""
    return {(role, rank): manager.pid_of(role, rank) for rank in ranks for role in ("engine-core", "worker")}


def is_gone(pid: int) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE_SECONDS)[0])
    finally:
        os.close(descriptor)


def test_it_registers_like_all_others(manager: ActorManagerProcess) -> None:
    assert {name: manager.registration[name] for name in ("role", "rank", "index", "incarnation")} == {
        "role": "actor-manager",
        "rank": None,
        "index": 0,
        "incarnation": 1,
    }
    assert manager.registration["pid"] == manager.process.pid


def test_a_rank_is_placed_and_runs_with_what_it_needs_to_register(
    manager: ActorManagerProcess, ray_names: Callable[[], set[str]]
) -> None:
    manager.want(manager.rank(0, members=(0, 0)), engine="chat")
    (placed,) = manager.placement("Placed")
    assert placed == {
        "rank": 0,
        "incarnation": manager.first,
        "strategy": "Pack",
        "state": "Placed",
        "bundles": [{"index": index, "state": "Placed", "node": "pod-0", "lacking": ""} for index in (0, 1)],
    }
    core, *workers = (manager.pid_of("engine-core", 0), manager.pid_of("worker", 0, 0), manager.pid_of("worker", 0, 1))
    arguments = json.loads(manager.file("worker", 0, 1).with_suffix(".arguments").read_text())
    directory = manager.file("worker", 0).parent
    common = ["--launcher-socket", f"{directory}/launcher.sock", "--config", f"{directory}/config.json"]
    assert arguments == [*common, "--rank", "0", "--incarnation", str(manager.first), "--index", "1"]
    # The second phase: everybody's view.
    for role, index in (("engine-core", 0), ("worker", 0), ("worker", 1)):
        view = json.loads(manager.file(role, 0, index).with_suffix(".workers").read_text())
        assert [worker["pid"] for worker in view] == workers
        assert core not in workers
    group = f"chat-r0-i{manager.first}"
    assert {group, f"{group}-core", f"{group}-tp0-pp0", f"{group}-tp1-pp0"} <= ray_names()


@pytest.mark.parametrize(
    ("word", "how", "text"),
    [
        ("exit 7", "Crashed", "ActorDiedError"),
        ("exit 0", "Returned", "exit code 0"),
        ("raise", "Raised", "ValueError: of this kind"),
    ],
)
def test_how_an_actor_ended_is_told_apart(manager: ActorManagerProcess, word: str, how: str, text: str) -> None:
    manager.want(manager.rank(0))
    pids = running(manager, 0)
    manager.have(word, "worker", 0)
    ended = manager.ended()
    assert (ended["role"], ended["rank"], ended["index"], ended["incarnation"]) == ("worker", 0, 0, manager.first)
    assert ended["how"] == how
    assert text in ended["message"]
    # Ray would keep a process that has raised or returned.
    assert is_gone(pids["worker", 0])
    os.kill(pids["engine-core", 0], 0)


def test_a_killed_actor_has_crashed(manager: ActorManagerProcess) -> None:
    manager.want(manager.rank(0))
    os.kill(running(manager, 0)["engine-core", 0], signal.SIGKILL)
    ended = manager.ended()
    assert (ended["role"], ended["how"]) == ("engine-core", "Crashed")


def test_a_planned_removal_says_nothing_and_leaves_nothing(manager: ActorManagerProcess, ray_names: Callable[[], set[str]]) -> None:
    manager.want(manager.rank(0), manager.rank(1))
    pids = running(manager, 0, 1)
    manager.want(manager.rank(1))
    manager.placement("Placed")
    assert is_gone(pids["engine-core", 0])
    assert is_gone(pids["worker", 0])
    assert not any(name.startswith("e-r0-") for name in ray_names())
    assert not [said for said in manager.heard if said["type"] == "ended"]
    os.kill(pids["worker", 1], 0)


def test_an_exception_that_nobody_can_read_is_an_end_like_any_other(manager: ActorManagerProcess) -> None:
    manager.file("worker", 0).with_suffix(".unreadable").touch()
    manager.want(manager.rank(0), manager.rank(1))
    assert (manager.ended()["role"], manager.heard[-1]["how"]) == ("worker", "Raised")
    manager.want(manager.rank(1))
    manager.placement("Placed")
    running(manager, 1)


def test_an_actor_that_cannot_be_constructed_was_not_started(manager: ActorManagerProcess) -> None:
    manager.file("worker", 0).with_suffix(".refuses").touch()
    manager.want(manager.rank(0))
    ended = manager.ended()
    assert (ended["role"], ended["how"]) == ("worker", "NotStarted")
    assert "this actor does not want to be" in ended["message"]
    # Nobody of the rank runs without it.
    assert not manager.file("engine-core", 0).with_suffix(".pid").exists()
    manager.want()
    manager.placement()


def test_after_a_core_is_killed_its_rank_is_removed_and_comes_back(
    manager: ActorManagerProcess, ray_names: Callable[[], set[str]]
) -> None:
    manager.want(manager.rank(0), manager.rank(1))
    pids = running(manager, 0, 1)
    os.kill(pids["engine-core", 0], signal.SIGKILL)
    manager.ended()
    manager.want(manager.rank(1))
    manager.placement("Placed")
    assert not any(name.startswith("e-r0-") for name in ray_names())
    assert is_gone(pids["worker", 0])
    manager.want(manager.rank(0, after=1), manager.rank(1))
    manager.placement("Placed", "Placed")
    manager.pid_of("worker", 0, after=1)
    assert not [said for said in manager.heard if said["type"] == "ended" and said["rank"] == 1]


def test_what_cannot_be_placed_waits_and_says_what_it_lacks(manager: ActorManagerProcess) -> None:
    manager.want(manager.rank(0))
    manager.placement("Placed")
    manager.want(manager.rank(0), manager.rank(1, members=(0, 0)))

    def lacks_one(said: dict[str, Any]) -> bool:
        # What Ray counts is of a moment ago: at first it may be nothing that is lacking, or more than this.
        shown = [(rank["state"], [bundle["lacking"] for bundle in rank["bundles"]]) for rank in said.get("ranks", ())]
        return shown == [("Placed", [""]), ("Lacking", ["", "needs accelerator: 1, member 0 has 2, 1 free"])]

    placed, _ = manager.hear(lacks_one)["ranks"]
    assert placed["bundles"][0]["state"] == "Placed"
    # Room that becomes free is found without a word from anybody.
    manager.want(manager.rank(1, members=(0, 0)))
    manager.placement("Placed")


def test_the_same_list_again_changes_nothing(manager: ActorManagerProcess) -> None:
    manager.want(manager.rank(0))
    pids = running(manager, 0)
    manager.want(manager.rank(0))
    manager.want(manager.rank(0), manager.rank(1))
    manager.placement("Placed", "Placed")
    assert running(manager, 0) == pids


def test_a_name_that_is_taken_is_refused(manager: ActorManagerProcess, start: Start) -> None:
    manager.want(manager.rank(0))
    manager.placement("Placed")
    other = start(uid="uid")
    other.want(manager.rank(0))
    assert (other.ended()["how"], other.heard[-1]["role"]) == ("NotStarted", "engine-core")
    assert "already exists" in other.heard[-1]["message"]
    other.want()
    running(manager, 0)


def test_bundles_that_no_placement_could_satisfy_are_refused(manager: ActorManagerProcess) -> None:
    manager.want(manager.rank(0, members=(0, 0), bundles=[1, 1]))
    ended = manager.ended()
    assert (ended["role"], ended["how"]) == ("engine-core", "NotStarted")
    assert ended["message"] == "rank 0 is told bundle indices 1, 1, 1 more than once: each worker needs its own"


def test_bundle_indices_are_taken_in_any_order(manager: ActorManagerProcess) -> None:
    manager.want(manager.rank(0, members=(0, 0), bundles=[1, 0]))
    manager.pid_of("worker", 0, 1)


def test_it_sleeps_while_nothing_happens(manager: ActorManagerProcess) -> None:
    manager.want(manager.rank(0), manager.rank(1))
    running(manager, 0, 1)
    manager.placement("Placed", "Placed")
    # Actors say that they run before the manager has come to rest; while something is to come it looks at least every second.
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (woken := _wake_ups_in(3.0, manager.process.pid)) > 0:
        assert time.monotonic() < deadline, f"in three idle seconds its main thread woke up {woken} times"


def test_told_to_stop_it_exits_in_order_and_takes_everything_along(start: Start, ray_names: Callable[[], set[str]]) -> None:
    manager = start()
    manager.want(manager.rank(0), engine="own")
    pids = running(manager, 0)
    assert manager.stop() == 0
    assert all(is_gone(pid) for pid in pids.values())
    assert not any(name.startswith("own-") for name in ray_names())


def test_killed_it_takes_everything_along(start: Start, ray_names: Callable[[], set[str]]) -> None:
    manager = start()
    manager.want(manager.rank(0), engine="own")
    pids = running(manager, 0)
    manager.process.kill()
    assert all(is_gone(pid) for pid in pids.values())
    assert not any(name.startswith("own-") for name in ray_names())


def _wake_ups_in(seconds: float, pid: int) -> int:
    before = _wake_ups(pid)
    time.sleep(seconds)  # what is measured is a length of time
    return _wake_ups(pid) - before


def _wake_ups(pid: int) -> int:
    """Of the main thread."""
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("voluntary_ctxt_switches")))
