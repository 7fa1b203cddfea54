"""Leadership: one at a time, judged by what is observed, lost when it cannot be kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from enginehouse_operator import lease as lease_module
from enginehouse_operator.kubernetes_client import Conflict, Kind, Unavailable
from enginehouse_operator.lease import DURATION_SECONDS, RENEW_DEADLINE_SECONDS, RETRY_SECONDS, Lease, LeaseLost


class OneLease:
    """An API server with room for one Lease, and with optimistic locking."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.is_away = False
        self.version = 0
        self.meanwhile: Callable[[], None] = lambda: None
        """Called while a request is under way, before it is carried out and before it is answered."""

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        self.meanwhile()
        if self.is_away:
            raise Unavailable("GET", status=0)
        return copy.deepcopy(self.stored)

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if self.stored is not None:
            raise Conflict("POST", status=409)
        return self._store(manifest)

    async def replace(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if self.is_away:
            raise Unavailable("PUT", status=0)
        assert self.stored is not None
        if manifest["metadata"]["resourceVersion"] != self.stored["metadata"]["resourceVersion"]:
            raise Conflict("PUT", status=409)
        stored = self._store(manifest)
        self.meanwhile()
        return stored

    def _store(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.stored = copy.deepcopy(manifest)
        self.stored["metadata"]["resourceVersion"] = str(self.version)
        return self.stored

    @property
    def holder(self) -> str:
        assert self.stored is not None
        return str(self.stored["spec"]["holderIdentity"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """``clock[0]`` is the monotonic time; sleeping moves it."""
    now = [1000.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    class Time:
        monotonic = staticmethod(lambda: now[0])

    monkeypatch.setattr(lease_module.asyncio, "sleep", sleep)
    monkeypatch.setattr(lease_module, "time", Time)
    return now


def candidate(server: OneLease, identity: str) -> Lease:
    return Lease(server, namespace="n", identity=identity)


async def test_the_first_one_leads_and_the_second_waits_until_the_lease_stood_still_and_no_longer(clock: list[float]) -> None:
    server = OneLease()
    await candidate(server, "a").acquire()
    assert server.holder == "a"
    began = clock[0]
    await candidate(server, "b").acquire()
    assert server.holder == "b"
    assert DURATION_SECONDS <= clock[0] - began <= DURATION_SECONDS + RETRY_SECONDS, "fail-over takes 20 s at most"


async def test_time_stamps_of_others_do_not_matter(clock: list[float]) -> None:
    server = OneLease()
    await candidate(server, "a").acquire()
    assert server.stored is not None
    server.stored["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    assert not await candidate(server, "b")._try()


async def test_a_released_lease_is_taken_at_once(clock: list[float]) -> None:
    server = OneLease()
    first = candidate(server, "a")
    await first.acquire()
    await first.release()
    began = clock[0]
    await candidate(server, "b").acquire()
    assert clock[0] == began


async def test_leadership_is_lost_when_the_api_is_away_for_longer_than_the_deadline(clock: list[float]) -> None:
    server = OneLease()
    leader = candidate(server, "a")
    await leader.acquire()
    server.is_away = True
    began = clock[0]
    with pytest.raises(LeaseLost):
        await leader.keep()
    assert clock[0] - began < DURATION_SECONDS, "before another one may take over"


async def test_leadership_is_lost_when_another_one_has_it(clock: list[float]) -> None:
    server = OneLease()
    leader = candidate(server, "a")
    await leader.acquire()
    assert server.stored is not None
    server.stored["spec"]["holderIdentity"] = "b"
    server.stored["metadata"]["resourceVersion"] = "99"
    with pytest.raises(LeaseLost, match="another"):
        await leader.keep()


async def test_a_lease_that_is_read_slowly_is_as_new_as_its_reading(clock: list[float]) -> None:
    server = OneLease()
    await candidate(server, "a").acquire()
    other = candidate(server, "b")

    def leader_renews_late() -> None:
        clock[0] += DURATION_SECONDS - 1
        server._store(server.stored or {})

    server.meanwhile = leader_renews_late
    assert not await other._try()
    server.meanwhile = lambda: None
    clock[0] += DURATION_SECONDS - 1
    assert not await other._try(), "it was renewed less than 15 s ago"
    clock[0] += 1
    assert await other._try()


async def test_a_leader_counts_from_before_it_wrote(clock: list[float]) -> None:
    server = OneLease()
    leader = candidate(server, "a")
    await leader.acquire()
    written: list[float] = []

    def slowly() -> None:
        if server.version == 2 and not written:  # the first renewal is stored, its answer takes long
            written.append(clock[0])
            clock[0] += RENEW_DEADLINE_SECONDS - 1
            server.is_away = True

    server.meanwhile = slowly
    with pytest.raises(LeaseLost):
        await leader.keep()
    assert clock[0] - written[0] < DURATION_SECONDS, "before another one may take over"


async def test_nobody_leads_by_a_writing_whose_answer_came_when_another_one_was_about_to_take_over(clock: list[float]) -> None:
    server = OneLease()
    first = candidate(server, "a")
    await first.acquire()
    await first.release()
    written: list[float] = []

    def slowly() -> None:
        if server.holder == "b" and not written:  # stored, and its answer takes long
            written.append(clock[0])
            clock[0] += DURATION_SECONDS - 1

    server.meanwhile = slowly
    before = server.version
    await candidate(server, "b").acquire()
    assert server.version == before + 2, "it is written again"
