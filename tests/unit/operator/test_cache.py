"""What passes decide on without reading: nothing older than what is known, nothing that is gone, nothing after a doubt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from memory_stage import PODS, REPLICAS, Stage

from enginehouse_operator import names, reasons
from enginehouse_operator.cache import TRUSTED, Cache, World

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ("n", "e")
ENGINE = {"kind": names.ENGINE_KIND, "metadata": {"name": "e", "namespace": "n", "uid": "e1", "resourceVersion": "1"}}


def owned(kind: str, uid: str, *, version: int, engine: str | None = "e", **fields: Any) -> dict[str, Any]:
    labels = {} if engine is None else {names.LABEL_ENGINE: engine}
    return {
        "kind": kind,
        "metadata": {"name": uid, "namespace": "n", "uid": uid, "resourceVersion": str(version), "labels": labels},
        **fields,
    }


def pod(uid: str = "p1", *, version: int = 5, **fields: Any) -> dict[str, Any]:
    return owned("Pod", uid, version=version, **fields)


@pytest.fixture
def cache() -> Cache:
    """Of one engine with one pod."""
    found = Cache()
    found.begin_read(KEY)
    found.hold(KEY, World(engine=ENGINE, pods=(pod(),)), now=NOW)
    return found


def read_again(cache: Cache, *objects: dict[str, Any]) -> None:
    """What the API server has now."""
    cache.begin_read(KEY)
    cache.hold(KEY, World(engine=ENGINE, pods=objects), now=NOW)


def leaving(cache: Cache, *, version: int) -> None:
    """Somebody has asked the pod to stop."""
    stopping = pod(version=version)
    stopping["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cache.wrote(KEY, stopping)


def pods(cache: Cache) -> dict[str, str]:
    """Versions by UID."""
    world = cache.world(KEY, now=NOW)
    assert world is not None, "it is not trusted"
    return {found["metadata"]["uid"]: found["metadata"]["resourceVersion"] for found in world.pods}


def test_an_engine_is_read_before_anything_is_told_of_it() -> None:
    cache = Cache()
    assert cache.heard("ADDED", ENGINE) == {KEY}
    assert cache.world(KEY, now=NOW) is None


def test_what_a_watch_brings_is_told_and_wants_a_pass(cache: Cache) -> None:
    assert cache.heard("ADDED", pod("p2", version=6)) == {KEY}
    assert cache.heard("MODIFIED", pod(version=7)) == {KEY}
    assert pods(cache) == {"p1": "7", "p2": "6"}
    leaving(cache, version=8)
    assert cache.heard("DELETED", pod(version=9)) == {KEY}
    assert pods(cache) == {"p2": "6"}


def test_the_echo_of_an_own_write_is_no_news_and_an_older_event_takes_nothing_back(cache: Cache) -> None:
    cache.wrote(KEY, pod(version=9))
    assert cache.heard("MODIFIED", pod(version=9)) == set()
    cache.heard("MODIFIED", pod(version=8))
    assert pods(cache) == {"p1": "9"}


def test_what_is_gone_does_not_come_back_with_a_late_answer_or_event(cache: Cache) -> None:
    cache.removed(KEY, "p1")
    cache.wrote(KEY, pod(version=10))
    cache.heard("MODIFIED", pod(version=11))
    assert pods(cache) == {}


def test_a_deleted_pod_takes_its_successor_of_the_same_name_not_with_it(cache: Cache) -> None:
    again = pod("p2", version=6)
    again["metadata"]["name"] = "p1"
    leaving(cache, version=5)
    cache.heard("ADDED", again)
    cache.heard("DELETED", pod(version=7))
    assert pods(cache) == {"p2": "6"}


def test_a_pod_that_vanishes_unannounced_has_everything_read_since_its_row_may_come_later(cache: Cache) -> None:
    assert cache.heard("DELETED", pod(version=6)) == {KEY}
    assert cache.world(KEY, now=NOW) is None


def test_the_last_word_before_a_pod_is_removed_is_not_that_it_drains(cache: Cache) -> None:
    last = pod(version=6)
    last["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}
    cache.heard("MODIFIED", last)
    assert pods(cache) == {"p1": "5"}
    read_again(cache, last)
    assert pods(cache) == {}
    last["metadata"]["finalizers"] = ["somebody/waits"]
    cache.heard("MODIFIED", last)
    assert pods(cache) == {"p1": "6"}


def test_what_loses_its_label_is_not_the_engines_until_a_read_finds_it_again(cache: Cache) -> None:
    assert cache.heard("MODIFIED", pod(version=6, engine=None)) == {KEY}
    assert cache.world(KEY, now=NOW) is None
    read_again(cache)
    assert pods(cache) == {}
    assert cache.heard("MODIFIED", pod("stranger", engine=None)) == set()
    assert cache.heard("ADDED", pod(version=7)) == {KEY}
    assert pods(cache) == {"p1": "7"}


def test_what_goes_to_another_engine_is_news_to_both(cache: Cache) -> None:
    assert cache.heard("MODIFIED", pod(version=6, engine="f")) == {KEY, ("n", "f")}
    read_again(cache)
    assert pods(cache) == {}


def test_a_read_outranks_what_was_held_and_what_was_thought_gone(cache: Cache) -> None:
    cache.removed(KEY, "p1")
    read_again(cache, pod(version=3))  # a store that was restored has older versions
    assert pods(cache) == {"p1": "3"}
    read_again(cache, pod(version=2))
    assert pods(cache) == {"p1": "2"}


def test_a_listing_of_other_objects_has_everything_read_since_it_does_not_name_what_is_gone(cache: Cache) -> None:
    other = pod("other", version=9, engine="f")
    assert cache.heard(None, other) == {KEY, ("n", "f")}
    assert cache.world(KEY, now=NOW) is None
    read_again(cache)
    assert cache.heard(None, pod("more", version=9, engine="f")) == {("n", "f")}, "it is the same listing"
    assert pods(cache) == {}
    assert KEY in cache.heard(None, other), "it is named again, so that is another listing"
    read_again(cache)
    assert cache.heard(None, pod("more", version=9, engine="f")) == {("n", "f")}
    cache.heard("MODIFIED", other)
    assert KEY in cache.heard(None, pod("third", version=9, engine="f"))


@pytest.mark.parametrize(
    "changes",
    [{"generation": 2}, {"annotations": {"note": "look"}}, {"labels": {"a": "b"}}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_engine_that_somebody_changed_is_read_again(cache: Cache, changes: dict[str, Any]) -> None:
    cache.heard("MODIFIED", ENGINE | {"metadata": ENGINE["metadata"] | {"resourceVersion": "2"} | changes})
    assert cache.world(KEY, now=NOW) is None


def test_an_engine_that_somebody_changed_just_before_its_status_was_written_is_read_again(cache: Cache) -> None:
    cache.wrote(KEY, ENGINE | {"metadata": ENGINE["metadata"] | {"resourceVersion": "3", "generation": 2}})
    assert cache.world(KEY, now=NOW) is None


def test_an_engine_whose_status_alone_changed_is_not_read_again(cache: Cache) -> None:
    changed = ENGINE | {"metadata": ENGINE["metadata"] | {"resourceVersion": "2"}, "status": {"replicas": 1}}
    assert cache.heard("MODIFIED", changed) == {KEY}
    world = cache.world(KEY, now=NOW)
    assert world is not None
    assert world.engine["status"] == {"replicas": 1}


def test_after_a_listing_a_doubt_and_ten_minutes_it_is_read_again(cache: Cache) -> None:
    assert cache.world(KEY, now=NOW + TRUSTED - timedelta(seconds=1)) is not None
    assert cache.world(KEY, now=NOW + TRUSTED) is None
    assert cache.world(KEY, now=NOW - timedelta(seconds=1)) is None, "a clock that was set back proves nothing"
    assert cache.trusted_seconds(KEY, now=NOW + timedelta(seconds=10)) == 590.0
    cache.heard(None, pod(version=6))
    assert cache.world(KEY, now=NOW) is None
    read_again(cache)
    assert pods(cache) == {}
    cache.doubt(KEY)
    assert cache.world(KEY, now=NOW) is None


def test_what_is_heard_during_a_read_is_newer_than_what_is_read(cache: Cache) -> None:
    leaving(cache, version=6)
    cache.begin_read(KEY)
    cache.heard("ADDED", pod("born", version=8))
    cache.heard("DELETED", pod(version=9))
    cache.hold(KEY, World(engine=ENGINE, pods=(pod(),)), now=NOW)
    assert pods(cache) == {"born": "8"}


def test_a_doubt_during_a_read_is_not_settled_by_it(cache: Cache) -> None:
    cache.begin_read(KEY)
    cache.doubt(KEY)
    assert cache.hold(KEY, World(engine=ENGINE), now=NOW) is not None
    assert cache.world(KEY, now=NOW) is None


def test_a_deleted_engine_leaves_nothing_behind(cache: Cache) -> None:
    assert cache.heard("DELETED", ENGINE) == {KEY}
    cache.begin_read(KEY)
    assert cache.hold(KEY, None, now=NOW) is None
    assert (cache._held, cache._keys) == ({}, {})


def test_specs_of_pods_and_who_manages_which_field_are_not_kept(cache: Cache) -> None:
    managers = [{"manager": "m", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:status": {}}}]
    for raw in (pod(version=6, spec={"containers": []}), owned(names.REPLICA_KIND, "r1", version=7, spec={"index": 0})):
        raw["metadata"]["managedFields"] = managers
        cache.heard("MODIFIED", raw)
    world = cache.world(KEY, now=NOW)
    assert world is not None
    assert ("spec" in world.pods[0], world.pods[0]["metadata"]["managedFields"]) == (False, [])
    kept = [{"manager": "m", "time": "2026-01-01T00:00:00Z"}]
    assert (world.replicas[0]["spec"], world.replicas[0]["metadata"]["managedFields"]) == ({"index": 0}, kept)


async def test_an_engine_is_made_and_settles_on_one_read_of_what_it_may_have() -> None:
    stage, reads = Stage(), list[str]()
    listed = stage.api.list

    async def counted(*arguments: Any, **options: Any) -> Any:
        reads.append(arguments[0].plural)
        return await listed(*arguments, **options)

    stage.api.list = counted  # type: ignore[method-assign]
    for _ in range(5):
        if (await stage.one_pass(reads=False)).after_seconds:
            break
    assert reads == [REPLICAS], "one that was never looked at has no pods and no rights"
    assert (await stage.one_pass(reads=False)).after_seconds == 600
    stage.serve()
    for found in (*stage.api.of(PODS), *stage.api.of(REPLICAS)):
        kind = "Pod" if found in stage.api.of(PODS) else names.REPLICA_KIND
        stage.cache.heard("MODIFIED", found | {"kind": kind})
    await stage.one_pass(reads=False)
    assert stage.condition("Ready") == ("True", reasons.ALL_REPLICAS_SERVE)
    assert reads == [REPLICAS]
