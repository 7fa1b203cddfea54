"""What the monitor makes of its replica's object, as the launcher hears it: a real process that watches a fake API server."""

from __future__ import annotations

import signal
from typing import Any

import pytest

DEAD = {"rank": 0, "incarnation": 1, "state": "Dead"}
FAILURE = {"role": "worker", "rank": 0, "incarnation": 1, "pid": 70, "signal": 11, "class": "Signal", "message": "worker 1 died"}
PEER = {"name": "pod-1", "uid": "other", "state": "Serving", "ranks": [DEAD], "failures": [FAILURE]}
ABORT = {"type": "abort", "ranks": [0], "cause": FAILURE}


def serving(api: Any, launcher: Any) -> Any:
    """A launcher whose row says Serving, and a monitor that watches."""
    assert launcher.hear() == {"type": "stored"}
    launcher.state("Serving")
    api.wait_for(lambda a: a.row()["state"] == "Serving" and a.watches)
    return launcher


def peer_dies(api: Any) -> None:
    api.change(members=[*api.members, PEER])


def test_a_rank_that_died_in_another_pod_is_aborted_once_with_its_cause(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = serving(api, one.launcher())
    peer_dies(api)
    assert launcher.hear() == ABORT
    api.change()
    launcher.say({"type": "something new"})
    launcher.say({"type": "state", "state": "Failed", "ranks": [DEAD]})
    api.wait_for(lambda a: a.row()["state"] == "Failed")
    assert launcher.hears_nothing()
    assert api.row()["failures"] == [], "it is the failure of the pod where it happened"


def test_what_happened_elsewhere_is_told_again_to_another_launcher_connection_and_by_another_monitor(
    api: Any, monitor: Any
) -> None:
    one = monitor()
    launcher = serving(api, one.launcher())
    peer_dies(api)
    assert launcher.hear() == ABORT
    assert one.launcher().hear() == ABORT
    one.process.kill()
    one.process.wait()
    assert monitor().launcher().hear() == ABORT


def test_a_rank_that_is_dead_here_or_lives_again_is_left_alone(api: Any, monitor: Any) -> None:
    launcher = serving(api, monitor().launcher())
    launcher.state("Serving", incarnation=2)
    api.wait_for(lambda a: a.row()["ranks"][0]["incarnation"] == 2)
    peer_dies(api)
    launcher.state("Serving", incarnation=2, kvBlocks=5)
    api.wait_for(lambda a: a.row()["ranks"][0].get("kvBlocks") == 5)
    assert launcher.hears_nothing()


@pytest.mark.parametrize("how", ["deleted", "deleting", "deleted while the watch was away", "deleted before the monitor started"])
def test_a_deleted_replica_drains(api: Any, monitor: Any, how: str) -> None:
    one = monitor()
    launcher = serving(api, one.launcher())
    match how:
        case "deleted":
            api.delete()
        case "deleting":
            api.change(deleting=True)
        case "deleted while the watch was away":
            api.watch_failures = [503, 410]
            api.cut_watches("cut")
            api.exists = False
        case _:
            one.process.kill()
            one.process.wait()
            api.exists = False
            one = monitor()
            launcher = one.launcher()
    assert launcher.hear() == {"type": "drain"}
    assert one.launcher().hear() == {"type": "drain"}, "told again to whoever connects, who shall not start anything"
    assert one.terminate() == 0


def test_a_successor_of_the_same_name_is_not_written_to_and_cuts_no_drain_short(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = serving(api, one.launcher())
    api.change("ADDED", uid="its successor", members=[])
    assert launcher.hear() == {"type": "drain"}, "also when nobody saw that its own is gone"
    writes = api.writes()
    launcher.state("Draining")
    assert one.launcher().hear() == {"type": "drain"}
    assert (api.writes(), api.members) == (writes, [])


def test_a_successor_that_only_the_answer_to_a_write_shows_drains_and_loses_the_row_again(api: Any, monitor: Any) -> None:
    launcher = serving(api, monitor().launcher())
    api.uid, api.members = "its successor", []
    launcher.state("Serving", kvBlocks=5)
    assert launcher.hear() == {"type": "drain"}
    api.wait_for(lambda a: a.row() is None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"uid": "its successor"}, {"type": "drain"}),
        ({"members": [{"name": "pod-0", "uid": "another"}]}, {"type": "abort", "ranks": [0]}),
    ],
)
def test_a_pod_that_is_not_the_member_it_was_made_for_is_ended_and_writes_nothing(
    api: Any, monitor: Any, change: dict[str, Any], told: dict[str, Any]
) -> None:
    for key, value in change.items():
        setattr(api, key, value)
    launcher = monitor().launcher()
    launcher.state("Starting")
    assert launcher.hear() == told
    assert (api.writes(), api.members) == (0, change.get("members", []))


def test_a_row_that_another_pod_writes_first_is_not_touched(api: Any, monitor: Any) -> None:
    """Between reading the replica and the first write."""
    handle = api.handle

    def race(method: str, *rest: Any) -> Any:
        if method == "PATCH" and not api.members:
            api.change(members=[{"name": "pod-0", "uid": "another"}])
        return handle(method, *rest)

    api.handle = race
    launcher = monitor().launcher()
    launcher.state("Starting")
    assert launcher.hear() == {"type": "abort", "ranks": [0]}
    assert api.members == [{"name": "pod-0", "uid": "another"}]


@pytest.mark.parametrize("trouble", [[401, 401], [403] * 3, [404], [500, 503], [429], [0, 0]], ids=str)
def test_a_watch_that_fails_changes_nothing_and_comes_back(api: Any, monitor: Any, trouble: list[int]) -> None:
    launcher = serving(api, monitor().launcher())
    api.watch_failures = list(trouble)
    api.cut_watches("cut")
    api.wait_for(lambda a: not a.watch_failures and a.watches)
    assert launcher.hears_nothing()
    peer_dies(api)
    assert launcher.hear() == ABORT
    assert api.reads() == 1, "it goes on from where it was"


@pytest.mark.parametrize(
    "how",
    ["end", "cut", "expire", "no json\n", '{"type": "MODIFIED"']
    + ['{"type": "ERROR", "object": {"code": 500}}\n', '{"type": "ERROR", "object": "why"}\n', "[" * 2000 + "]" * 2000 + "\n"],
    ids=lambda how: how[:40],
)
def test_whatever_ends_a_watch_what_happened_meanwhile_is_seen(api: Any, monitor: Any, how: str) -> None:
    launcher = serving(api, monitor().launcher())
    api.cut_watches(how)
    peer_dies(api)
    assert launcher.hear() == ABORT
    api.wait_for(lambda a: a.watches and len(a.watch_requests()) == 2)
    assert api.reads() == (2 if how == "expire" else 1)


def test_a_server_that_ends_every_watch_at_once_is_not_asked_without_a_pause(api: Any, monitor: Any) -> None:
    one = monitor()
    serving(api, one.launcher())
    for _ in range(4):
        watches = len(api.watch_requests())
        api.cut_watches("end")
        api.wait_for(lambda a, before=watches: len(a.watch_requests()) > before and a.watches)
    assert one.log.read_text().count("the watch ended without a word") >= 3


def test_a_watch_goes_on_from_the_last_bookmark_after_its_token_was_rotated(api: Any, monitor: Any) -> None:
    launcher = serving(api, monitor().launcher())
    api.rotate("second")
    api.change("BOOKMARK")
    api.cut_watches("end")
    api.wait_for(lambda a: f"resourceVersion={a.version}" in a.watch_requests()[-1] and a.watches)
    peer_dies(api)
    assert launcher.hear() == ABORT


def test_the_row_is_born_although_the_replica_changes_all_the_time(api: Any, monitor: Any) -> None:
    handle, changes = api.handle, iter(range(3))

    def race(method: str, *rest: Any) -> Any:
        if method == "PATCH" and next(changes, None) is not None:
            api.change()
        return handle(method, *rest)

    api.handle = race
    assert monitor().launcher().hear() == {"type": "stored"}
    assert api.row()["uid"] == "pod-uid"


def test_a_spurious_wake_up_changes_nothing(api: Any, monitor: Any) -> None:
    one = monitor()
    launcher = serving(api, one.launcher())
    writes = api.writes()
    for _ in range(20):
        one.process.send_signal(signal.SIGSTOP)
        one.process.send_signal(signal.SIGCONT)
        one.process.send_signal(signal.SIGWINCH)
    launcher.state("Serving", kvBlocks=5)
    api.wait_for(lambda a: a.row()["ranks"][0].get("kvBlocks") == 5)
    assert api.writes() == writes + 1
    assert launcher.hears_nothing()
